"""The Long-Short mixer one token at a time, from a state whose size depends on nothing but its options.

The state is a ring of the last `window` tokens, the sinks, and of every level of the memory a ring of nodes. A node
takes its tokens in as they come, by the running form of its softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.eager import plain_inference, written
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.joint_attention import hidden_score, joint_attention
from remixer.mixers.long_short.memory import levels_for
from remixer.mixers.long_short.moment import Moment, Rings, moment_of
from remixer.mixers.long_short.offset_columns import node_masses
from remixer.mixers.long_short.retrieval_stream import Library
from remixer.mixers.long_short.summaries import log_share
from remixer.mixers.offset_bias import bias_at
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec


@dataclass(frozen=True)
class Columns:
    """Some of what a token sees.

    Attributes:
        key: (B, G, columns, D).
        value: (B, G, columns, E).
        bias: (B, H or 1, columns), added to the scores.
    """

    key: Tensor
    value: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Stream:
    """Reads and writes the state of a causal Long-Short mixer.

    Attributes:
        spec: of the attention that is replaced.
        config: of the mixer.
        sinks: how many there are.
        rank: summaries of every segment; 0 for none.
        retrieve: how many far segments are attended to word for word.
        align: windows start at a multiple of so many tokens.
    """

    spec: AttentionSpec
    config: LongShort
    sinks: int
    rank: int
    retrieve: int
    align: int

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See Mixer.initial_state."""
        spec, window = self.spec, min(self.config.window + self.align - 1, length)
        G, D, E = spec.kv_heads, spec.head_dim, spec.value_dim
        whole, wide = torch.int64, at_least_float32(like.dtype)
        state = {
            "time": like.new_zeros((), dtype=whole),
            "existed": like.new_zeros(batch, dtype=whole),
            "key": like.new_zeros(batch, G, window, D),
            "value": like.new_zeros(batch, G, window, E),
            "place": like.new_full((batch, window), -1, dtype=whole),
        }
        if self.sinks:
            state["sink_key"] = like.new_zeros(batch, G, self.sinks, D)
            state["sink_value"] = like.new_zeros(batch, G, self.sinks, E)
            state["sink_time"] = like.new_full((batch, self.sinks), -1, dtype=whole)
        if self.rank:
            levels = levels_for(self.config.memory, self.config.per_size, -(-length // self.config.segment))
            nodes = (levels, self._ring(length))
            state["far_key"] = like.new_zeros(batch, G, *nodes, self.rank, D, dtype=wide)
            state["far_value"] = like.new_zeros(batch, G, *nodes, self.rank, E, dtype=wide)
            state["mass"] = like.new_full((batch, G, *nodes, self.rank), torch.finfo(wide).min, dtype=wide)
            state["count"] = like.new_zeros(batch, *nodes, dtype=whole)
        return state | (self.library.initial_state(batch, length, like) if self.retrieve else {})

    @property
    def library(self) -> Library:
        """What is kept of all tokens."""
        return Library(self.spec, self.config)

    def _ring(self, length: int) -> int:
        """How many nodes of a level are kept: those in sight, and those that are not before the window yet."""
        segment, memory = self.config.segment, self.config.memory
        most = -(-length // segment)
        if memory is None:
            return most
        young = -(-self.config.window // segment) + 2
        return min(most, young + (2 * self.config.per_size + 4 if memory == "dyadic" else memory))

    def take_in(
        self, state: State, moment: Moment, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
    ) -> State:
        """The state with a token's normed key (B, G, 1, D) and value (B, G, 1, E) in the window and the sinks."""
        state = dict(state)
        time, exists = state["time"], _existing(state, padding)
        state["existed"] = state["existed"] + exists
        place = state["existed"] if self.spec.skips_padding else time.expand(exists.shape)
        state["key"] = written(state["key"], 2, moment.slot, key)
        state["value"] = written(state["value"], 2, moment.slot, value)
        state["place"] = written(state["place"], 1, moment.slot, torch.where(exists, place, -1)[:, None])
        if self.sinks and not self._later(state["existed"]):
            nth = torch.arange(1, self.sinks + 1, device=time.device)
            mine = (nth == state["existed"][:, None]) & exists[:, None]  # (B, sinks)
            state["sink_time"] = torch.where(mine, time, state["sink_time"])
            for name, new in (("sink_key", key), ("sink_value", value)):
                state[name] = torch.where(mine[:, None, :, None], new, state[name])
        return self.library.take_in(state, query, key, value, exists, place) if self.retrieve else state

    def _later(self, existed: Tensor) -> bool:
        """Whether no token can be a sink any more; asked where that is free."""
        return plain_inference(existed) and int(existed.min()) > self.sinks

    def pool_in(
        self,
        state: State,
        moment: Moment,
        pooling: Tensor,
        reads: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
    ) -> State:
        """The state with a token in the nodes of all levels that it belongs to.

        Args:
            state: with the time of the token.
            moment: that time.
            pooling: W_P, (G, D or C, rank).
            reads: (B, G or 1, 1, D or C).
            key: (B, G, 1, D), not normed.
            value: (B, G, 1, E).
            padding: (B, 1) bool, whether it exists, or None.
        """
        state, dtype, exists = dict(state), state["mass"].dtype, _existing(state, padding)
        index, fresh = moment.place, moment.fresh
        logit = (reads @ pooling).to(dtype)  # (B, G, 1, rank)
        least = torch.finfo(dtype).min
        mass = state["mass"].flatten(2, 3).index_select(2, index).masked_fill(fresh[:, None], least)
        count = state["count"].flatten(1, 2).index_select(1, index).masked_fill(fresh, 0)
        here = exists[:, None, None, None]
        more = torch.where(here, torch.logaddexp(mass, logit), mass)
        old, new = (mass - more).exp()[..., None], torch.where(here, (logit - more).exp(), 0.0)[..., None]
        for name, token in (("far_key", key), ("far_value", value)):
            far = state[name].flatten(2, 3).index_select(2, index)  # (B, G, L, rank, D)
            mixed = torch.where(fresh[:, None, None], 0.0, far * old) + token[:, :, :, None].to(dtype) * new
            state[name] = written(state[name].flatten(2, 3), 2, index, mixed).view(state[name].shape)
        state["mass"] = written(state["mass"].flatten(2, 3), 2, index, more).view(state["mass"].shape)
        count = count + exists[:, None]
        state["count"] = written(state["count"].flatten(1, 2), 1, index, count).view(state["count"].shape)
        return state

    def moment(self, state: State) -> Moment:
        """What goes by the time of the newest token alone."""
        return moment_of(state["time"], Rings.of(state, self.config, self.align, self.spec.window[0]))

    def summaries(
        self,
        state: State,
        moment: Moment,
        as_seen: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        added: Tensor | None,
        bias: Tensor | None,
    ) -> Columns:
        """The nodes in sight of the newest token.

        Args:
            state: with that token.
            moment: its time.
            as_seen: makes of keys and values of summaries what queries see.
            added: (H,), added to their scores, or None.
            bias: (H, 2 T - 1), by offset, or None.
        """
        levels, config, time = state["mass"].shape[2], self.config, state["time"]
        held, seen = moment.held, moment.seen
        dtype = state["mass"].dtype
        scores = log_share(state["count"], self.rank, config.counted, hidden_score(dtype), dtype)
        scores = scores.masked_fill(~seen, hidden_score(dtype)).flatten(1)[:, None]  # (B, 1, nodes)
        if self.retrieve and config.counted:
            scores = scores + self.library.share_left(state, held).repeat_interleave(self.spec.groups, 1).to(dtype)
        if added is not None:
            scores = scores + added.to(dtype)[:, None]
        if bias is not None:
            T = (bias.shape[1] + 1) // 2
            masses = node_masses(bias, config.segment, levels)
            starts = [(held[i] * (config.segment << i) - time + T - 1) for i in range(levels)]
            theirs = [
                mass[:, start.clamp(0, mass.shape[1] - 1)] - math.log(config.segment << i)
                for i, (mass, start) in enumerate(zip(masses, starts, strict=True))
            ]
            scores = scores + torch.cat(theirs, -1)
        key, value = as_seen(*(state[name].flatten(2, 4) for name in ("far_key", "far_value")))
        return Columns(key, value, scores.repeat_interleave(self.rank, -1))

    def tokens(self, state: State, moment: Moment, bias: Tensor | None) -> list[Columns]:
        """The sinks and the window in sight of the newest token."""
        time, dtype = state["time"], at_least_float32(state["key"].dtype)
        seen = (state["place"] >= 0) & moment.near
        parts = [(state["key"], state["value"], seen, state["place"])]
        if self.sinks:
            since = state["sink_time"]
            nth = torch.arange(1, self.sinks + 1, device=time.device).expand_as(since)
            place = nth if self.spec.skips_padding else since
            out = (since >= 0) & (since < moment.start)
            parts.insert(0, (state["sink_key"], state["sink_value"], out, place))
        columns = []
        own = state["existed"][:, None] if self.spec.skips_padding else time
        for key, value, here, place in parts:
            scores = torch.zeros(here.shape, dtype=dtype, device=here.device)
            scores = scores.masked_fill(~here, hidden_score(dtype))[:, None]
            if bias is not None:
                scores = scores + bias_at(bias.to(dtype), place - own, (bias.shape[1] + 1) // 2).transpose(0, 1)
            columns.append(Columns(key, value, scores))
        return columns

    def retrieved(self, state: State, bias: Tensor | None) -> Columns:
        """The chosen far tokens in sight of the newest one."""
        key, value, seen, place = self.library.tokens(state)
        dtype = at_least_float32(key.dtype)
        scores = torch.zeros((), dtype=dtype, device=key.device).masked_fill(~seen, hidden_score(dtype))
        scores = scores.repeat_interleave(self.spec.groups, 1)
        if bias is not None:
            ahead = place - (state["existed"][:, None, None] if self.spec.skips_padding else state["time"])
            index = (ahead + bias.shape[1] // 2).clamp(0, bias.shape[1] - 1).repeat_interleave(self.spec.groups, 1)
            scores = scores + bias.to(dtype)[None].expand(len(index), -1, -1).gather(2, index)
        return Columns(key, value, scores)

    def attend(self, query: Tensor, columns: list[Columns], dropout: float) -> Tensor:
        """One softmax over all columns: query (B, H, 1, D) to (B, H, 1, E), 0 where nothing is seen."""
        spec, (B, H) = self.spec, query.shape[:2]
        key = torch.cat([part.key.to(query.dtype) for part in columns], 2)
        value = torch.cat([part.value.to(query.dtype) for part in columns], 2)
        bias = torch.cat([part.bias.expand(B, H, -1) for part in columns], 2)
        mixed = joint_attention(query, key, value, bias.to(query.dtype)[:, :, None], None, 0, spec, dropout)
        return mixed.masked_fill(~(bias > hidden_score(bias.dtype) / 2).any(-1)[..., None, None], 0.0)


def _existing(state: State, padding: Tensor | None) -> Tensor:
    """(B,) bool, whether the newest token exists."""
    return torch.ones_like(state["existed"], dtype=torch.bool) if padding is None else padding[:, 0]
