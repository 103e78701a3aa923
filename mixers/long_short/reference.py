"""The Long-Short mixer in its slow, obvious form: one query at a time over the list of what it sees."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.retrieval_reference import chosen_segments, merged_with_age, segments_before
from remixer.mixers.spec import AttentionSpec


class Summary(NamedTuple):
    """The tokens first..first + size - 1, those that exist, and their keys (G, rank, D) and values (G, rank, E)."""

    first: int
    size: int
    members: list[int]
    key: Tensor
    value: Tensor


def long_short_reference(
    spec: AttentionSpec,
    config: LongShort,
    parameters: Mapping[str, Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    bias: Tensor | None,
    source: Tensor | None,
) -> Tensor:
    """softmax([summaries; sinks; window]) of every query.

    Args:
        spec: of the attention that is replaced.
        config: of the mixer.
        parameters: of the mixer, by name.
        query: (B, H, T, D).
        key: (B, G, T, D).
        value: (B, G, T, E).
        padding: (B, T) bool, True where a key exists, or None.
        bias: (H, 2 T - 1), what is added by offset, or None.
        source: (B, T, C), where the summaries are projected from it.

    Returns:
        (B, H, T, E).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    weights = {name: each.to(dtype) for name, each in parameters.items()}
    q, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    (B, H, T, _), G = q.shape, k.shape[1]
    rank = config.rank if config.rank is not None else 1 if spec.causal else 32
    by_offset = q.new_zeros(H, 2 * T - 1) if bias is None else bias.to(dtype)
    rows = []
    for b in range(B):
        kept = [s for s in range(T) if padding is None or bool(padding[b, s])]
        place = torch.arange(T)
        if spec.skips_padding and padding is not None:
            place = padding[b].long().cumsum(0)
        reads = k[b] if config.project_from == "key" else None if source is None else source[b].to(dtype)[None]
        near_k, near_v = (_normed("window_norm", x[b], config, weights) for x in (k, v))

        @functools.cache
        def summary(first: int, size: int, b: int = b, kept: list[int] = kept, reads: Tensor | None = reads) -> Summary:
            """Of the tokens first..first + size - 1."""
            members = [s for s in kept if first <= s < first + size]
            assert reads is not None
            P = torch.softmax(reads[:, members] @ weights["pooling"], 1)  # (G, members, rank)
            far = (P.transpose(1, 2) @ x[b, :, members] for x in (k, v))
            if config.maps:
                far = (x @ weights[name] for x, name in zip(far, ("key_map", "value_map"), strict=True))
            far_k, far_v = (_normed("summary_norm", x, config, weights) for x in far)
            return Summary(first, size, members, far_k, far_v)

        for t, g in itertools.product(range(T), range(G)):
            readers = slice(g * spec.groups, (g + 1) * spec.groups)
            first_tokens = [] if spec.windowed else kept[: config.sinks]
            window = [s for s in kept if _in_window(t, s, spec, config)]
            sinks = [s for s in first_tokens if s not in window and not (spec.causal and s > t)]
            chosen = []
            if config.retrieve and not spec.windowed and config.window < T:
                starts = chosen_segments(q[b, readers], near_k[g], kept, t, spec, config)
                chosen = [s for first in starts for s in range(first, first + config.segment) if s in kept]
            tokens = sinks + window + [s for s in chosen if s not in first_tokens and s not in window]
            ks, vs = [near_k[g, tokens]], [near_v[g, tokens]]
            plus = [by_offset[readers][:, place[tokens] - place[t] + T - 1]]
            runs = [(0, T)] if not spec.causal else _runs_before(t - config.window + 1, config)
            if not rank or spec.windowed:
                runs = []
            for first, size, members, far_k, far_v in (summary(*run) for run in runs):
                stands_for = len(set(members) - set(chosen if spec.causal else tokens))
                if not members or (config.counted and stands_for == 0):
                    continue
                count = q.new_zeros(spec.groups)
                if config.counted:
                    most = stands_for if spec.causal else rank
                    count = math.log(min(stands_for, most) / rank) + weights["summary_bias"][readers]
                ks.append(far_k[g])
                vs.append(far_v[g])
                behind = torch.tensor(_behind(t, range(first, first + size), spec, config))
                mean = by_offset[readers][:, behind - t + T - 1].logsumexp(1) - math.log(len(behind))
                plus.append((count + mean)[:, None].expand(-1, rank))
            scores = spec.scale * q[b, readers, t] @ torch.cat(ks).T
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            P = torch.softmax(scores + torch.cat(plus, 1), -1)
            rows.append(P @ torch.cat(vs))
    return torch.stack(rows).view(B, T, H, -1).transpose(1, 2).to(value.dtype)


def _runs_before(before: int, config: LongShort) -> list[tuple[int, int]]:
    """The runs of tokens whose summaries a causal query sees before the start of its window."""
    runs = segments_before(before, config.segment)
    if config.memory == "dyadic":
        return merged_with_age(runs, config.per_size)
    return runs if config.memory is None else runs[-config.memory :]


def _behind(t: int, run: range, spec: AttentionSpec, config: LongShort) -> list[int]:
    """Positions that a summary stands for where its bias is reckoned, whether they exist or not."""
    beyond = [s for s in run if spec.causal or (config.counted and not _in_window(t, s, spec, config))]
    return beyond or list(run)


def _in_window(t: int, s: int, spec: AttentionSpec, config: LongShort) -> bool:
    """Whether query t sees key s exactly."""
    left, right = spec.window
    if (left is not None and s < t - left) or (right is not None and s > t + right):
        return False
    if spec.causal:
        before = t - config.window + 1
        if (config.rank != 0 or config.retrieve) and not spec.windowed:
            before = before // config.segment * config.segment
        return before <= s <= t
    first = t // config.window * config.window
    half = config.window // 2
    return first - half <= s < first + config.window + half


def _normed(name: str, x: Tensor, config: LongShort, weights: Mapping[str, Tensor]) -> Tensor:
    """(G, n, D), each token normalised over all heads together or over each alone."""
    if config.dual_norm == "none":
        return x
    G, n, D = x.shape
    flat = x.transpose(0, 1).reshape(n, 1, G * D) if config.dual_norm == "paper" else x.transpose(0, 1)
    centred = flat - flat.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    scaled = normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return scaled.reshape(n, G, D).transpose(0, 1)
