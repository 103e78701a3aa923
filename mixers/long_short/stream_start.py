"""The state of a Long-Short stream after its first tokens, from all of them at once."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.long_short.memory import existing_in_segments, pairs
from remixer.mixers.long_short.sinks import first_existing, gather_tokens
from remixer.mixers.long_short.stream import Stream
from remixer.mixers.long_short.summaries import Level
from remixer.mixers.ring_buffer import in_slots


def after_tokens(stream: Stream, state: State, key: Tensor, value: Tensor, exist: Tensor) -> State:
    """The empty state with the first tokens in its window and its sinks.

    Args:
        stream: whose state it is.
        state: empty.
        key: (B, G, T, D), normed.
        value: (B, G, T, E), normed.
        exist: (B, T) bool.
    """
    state, times = dict(state), torch.arange(exist.shape[1], device=exist.device)
    last, place = times[-1], exist.long().cumsum(1)
    state["time"], state["existed"] = last + 1, place[:, -1]
    if not stream.spec.skips_padding:
        place = times.expand(exist.shape)
    token, there = in_slots(last, state["key"].shape[2])
    place = torch.where(exist, place, -1)[:, token]
    state["place"] = place.masked_fill(~there, -1)
    for name, tokens in (("key", key), ("value", value)):
        held = tokens.index_select(2, token).masked_fill(~there[:, None], 0.0)
        state[name] = held.to(state[name].dtype)
    if stream.sinks:
        position, found = first_existing(exist, stream.sinks)
        state["sink_time"] = torch.where(found, position, -1)
        for name, tokens in (("sink_key", key), ("sink_value", value)):
            state[name] = gather_tokens(tokens, position).masked_fill(~found[:, None, :, None], 0.0)
    return state


def after_summaries(
    stream: Stream, state: State, pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, exist: Tensor
) -> State:
    """The state with the first tokens in the nodes of all levels.

    Args:
        stream: whose state it is.
        state: with no tokens in its nodes.
        pooling: W_P, (G, D or C, rank).
        reads: (B, G or 1, T, D or C).
        key: (B, G, T, D), not normed.
        value: (B, G, T, E).
        exist: (B, T) bool.
    """
    levels, ring = state["mass"].shape[2:4]
    newest = torch.arange(exist.shape[1], device=exist.device)[-1] // stream.config.segment
    level = Level.of(pooling, reads, key, value, exist, stream.config.segment)
    count = existing_in_segments(exist, stream.config.segment)
    entries: dict[str, list[Tensor]] = {"far_key": [], "far_value": [], "mass": [], "count": []}
    for index in range(levels):
        if index:
            level, count = level.merged(), pairs(count, 1).sum(2)
        node, there = in_slots(newest // 2**index, ring)
        least = torch.finfo(level.mass.dtype).min
        beside = there[:, None]
        entries["mass"].append(level.mass.index_select(2, node).masked_fill(~beside, least))
        entries["far_key"].append(level.key.index_select(2, node).masked_fill(~beside[..., None], 0.0))
        entries["far_value"].append(level.value.index_select(2, node).masked_fill(~beside[..., None], 0.0))
        entries["count"].append(count.index_select(1, node).masked_fill(~there, 0))
    return {**state, **{name: torch.stack(parts, 1 if name == "count" else 2) for name, parts in entries.items()}}
