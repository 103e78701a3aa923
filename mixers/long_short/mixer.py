"""Long-Short token mixing (Zhu et al., 2021, "Long-Short Transformer", equation 5): window plus summaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from remixer.mixers.base import Mixer, Order, State, Unsupported
from remixer.mixers.eager import all_exist, untraced
from remixer.mixers.errors import NoStepError
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.dispatch import mix
from remixer.mixers.long_short.dual_norm import dual_norm
from remixer.mixers.long_short.reference import long_short_reference
from remixer.mixers.long_short.retrieval import choose
from remixer.mixers.long_short.sight import Sight, Tokens, covers
from remixer.mixers.long_short.stream import Stream
from remixer.mixers.long_short.stream_start import after_summaries, after_tokens
from remixer.mixers.long_short.summaries import pool
from remixer.mixers.long_short.whole import Whole
from remixer.mixers.masks import allowed_keys, existing_tokens
from remixer.mixers.registry import register
from remixer.mixers.softmax import attend, exact_attention
from remixer.mixers.spec import AttentionSpec


@register("long_short")
class LongShortMixer(Mixer):
    """softmax over [summaries; sinks; window] of every query, in linear time and memory."""

    Config = LongShort
    config: LongShort
    of_tokens = ("time", "existed", "place", "sink_time", "count", "all_place", "box_count")

    def __init__(self, spec: AttentionSpec, config: LongShort | None = None) -> None:
        config = config or LongShort()
        super().__init__(spec, config)
        # A pretrained window hid everything beyond it, which neither summaries nor sinks may show.
        self.rank = 0 if spec.windowed else config.rank if config.rank is not None else 1 if spec.causal else 32
        self.sinks = 0 if spec.windowed else config.sinks
        self.retrieve = 0 if spec.windowed else config.retrieve
        # Windows start where segments do, if there are any.
        self.align = config.segment if spec.causal and (self.rank or self.retrieve) else 1
        self.pooling: nn.Parameter | None = None
        self.summary_bias: nn.Parameter | None = None
        self.key_map: nn.Parameter | None = None
        self.value_map: nn.Parameter | None = None
        if spec.bias == "offset":
            self.operands = (*self.operands, "bias")
        if self.rank:
            if config.project_from == "source":
                self.operands = (*self.operands, "source")
            read = spec.head_dim if config.project_from == "key" else spec.source_dim
            assert read is not None
            # Nearly uniform weights, yet no two summaries the same.
            self.pooling = nn.Parameter(torch.empty(spec.kv_heads, read, self.rank).normal_(std=0.02))
            if config.maps:
                self.key_map = nn.Parameter(torch.eye(spec.head_dim).repeat(spec.kv_heads, 1, 1))
                self.value_map = nn.Parameter(torch.eye(spec.value_dim).repeat(spec.kv_heads, 1, 1))
            if config.counted:
                self.summary_bias = nn.Parameter(torch.zeros(spec.heads))
        self.window_norm: nn.LayerNorm | None = None
        self.summary_norm: nn.LayerNorm | None = None
        if config.dual_norm != "none":
            size = spec.head_dim * (spec.kv_heads if config.dual_norm == "paper" else 1)
            self.window_norm = nn.LayerNorm(size)
            self.summary_norm = nn.LayerNorm(size) if self.rank else None

    def flops(self, tokens: int) -> float:
        """See Mixer.flops: of all columns that a query meets, and of pooling."""
        spec, config = self.spec, self.config
        segments = tokens / config.segment
        if spec.causal:
            columns = min(tokens / 2, config.window + self.align / 2)
            far = (
                segments / 2 if config.memory is None else segments / 2 if config.memory == "dyadic" else config.memory
            )
            if config.memory == "dyadic":
                far = min(segments / 2, config.per_size * math.log2(max(2.0, segments / config.per_size)))
            summaries = self.rank * min(segments / 2, far)
        else:
            columns, summaries = min(tokens, 2 * config.window), self.rank
        chosen = (
            self.retrieve * config.segment + 2 * self.retrieve * math.log2(max(2.0, segments)) if self.retrieve else 0
        )
        met = min(tokens, columns + self.sinks + summaries + chosen)
        pooled = self.rank * spec.kv_heads * (2 * spec.head_dim + spec.value_dim)
        return 2.0 * tokens * (spec.heads * met * (spec.head_dim + spec.value_dim) + pooled)

    def learning_rate(self, name: str) -> float:
        """See Mixer.learning_rate: what summaries are read with starts near zero, and has far to go."""
        return 2e-2 if name in ("pooling", "summary_bias") else super().learning_rate(name)

    def by_head(self) -> Mapping[str, Literal["heads", "kv_heads"]] | None:
        """See Mixer.by_head: the paper's norms look at all heads together."""
        if self.config.dual_norm == "paper":
            return None
        found: dict[str, Literal["heads", "kv_heads"]] = {}
        if self.pooling is not None:
            found["pooling"] = "kv_heads"
        if self.summary_bias is not None:
            found["summary_bias"] = "heads"
        if self.key_map is not None:
            found |= {"key_map": "kv_heads", "value_map": "kv_heads"}
        return found

    @classmethod
    def supports(cls, spec: AttentionSpec, config: LongShort) -> Unsupported | None:
        """Self-attention of any window and softcap, without a bias or with one by offset."""
        if spec.cross:
            return Unsupported("'long_short' needs as many queries as keys, this is cross-attention")
        if spec.bias == "dense":
            return Unsupported("'long_short' can't carry a dense bias over to a window")
        if spec.sink:
            return Unsupported("'long_short' has no place for the attention's learned sink")
        if config.project_from == "source" and config.rank != 0 and not spec.windowed and spec.source_dim is None:
            return Unsupported("its keys aren't read from one hidden state, which project_from='source' asks for")
        if config.dual_norm != "none" and spec.head_dim != spec.value_dim:
            sizes = f"{spec.head_dim} and {spec.value_dim}"
            return Unsupported(f"dual_norm shares one LayerNorm between keys and values, which have sizes {sizes}")
        return None

    @property
    def order(self) -> Order:
        """Linear, unless all that lies before the window stays visible, or is searched."""
        remembers = self.config.memory if self.spec.causal and self.rank else 0
        return "n^2" if remembers is None else "n log n" if remembers == "dyadic" or self.retrieve else "n"

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """See Mixer.forward. A query that sees nothing gives 0."""
        assert query is not None
        assert key is not None
        assert value is not None
        spec, config, T = self.spec, self.config, query.shape[2]
        dropout = spec.dropout if self.training else 0.0
        if all_exist(padding):
            padding = None
        near_key, near_value = self.near(key), self.near(value)
        whole = covers(config.window + self.align - 1, T)
        if whole and (spec.causal or config.counted or not self.rank):
            # Nothing is left for summaries to stand for: this is the attention itself.
            if bias is not None:
                silent = replace(spec, dead_rows="zero")
                return exact_attention(
                    query, near_key, near_value, spec=silent, padding=padding, bias=bias, dropout=dropout
                )
            plain = spec.causal and not spec.windowed and padding is None
            mask = None if plain else allowed_keys(spec, T, T, padding, query.device)
            return attend(query, near_key, near_value, mask, spec=spec, causal=plain, dropout=dropout)
        if padding is None and untraced(query):
            sight = Whole(spec, config, T, self.sinks, self.rank, self.align, query.device).sight()
        else:
            exist = query.new_ones(1, T, dtype=torch.bool) if padding is None else padding
            sight = Sight.of(spec, config, exist, self.sinks, self.rank, self.align)
        far_key, far_value = self.far(key, value, source, padding, sight) if self.rank else (None, None)
        keys, values = sight.tokens(near_key, far_key), sight.tokens(near_value, far_value)
        if self.retrieve and not whole:
            chosen = choose(query, near_key, sight.exist, spec, config)
            return mix(
                query, keys, values, sight, self.summary_bias, bias, chosen, masked=padding is not None, dropout=dropout
            )
        return self.mix(query, keys, values, sight, bias, masked=padding is not None, dropout=dropout)

    def mix(
        self,
        query: Tensor,
        keys: Tokens,
        values: Tokens,
        sight: Sight,
        offsets: Tensor | None,
        *,
        masked: bool,
        dropout: float,
    ) -> Tensor:
        """The attention over [summaries; sinks; window], (B, H, T, E), in the form that is fastest here."""
        return mix(query, keys, values, sight, self.summary_bias, offsets, masked=masked, dropout=dropout)

    def near(self, tokens: Tensor) -> Tensor:
        """Keys or values as the window shows them, (B, G, S, D)."""
        return dual_norm(self.window_norm, tokens, self.config.dual_norm)

    def far(
        self, key: Tensor, value: Tensor, source: Tensor | None, padding: Tensor | None, sight: Sight
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all summaries, see `pool`; there must be some."""
        assert self.pooling is not None
        reads = key if source is None or self.config.project_from == "key" else source[:, None]
        segment, levels = (self.config.segment, sight.memory.levels) if self.spec.causal else (None, 1)
        far_key, far_value = pool(self.pooling, reads, key, value, padding, segment, levels)
        return self.as_seen(far_key, far_value)

    def as_seen(self, far_key: Tensor, far_value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, G, S, D) and values (B, G, S, E) of summaries as queries see them: mapped and normed."""
        if self.key_map is not None and self.value_map is not None:
            far_key = far_key @ self.key_map.to(far_key.dtype)
            far_value = far_value @ self.value_map.to(far_value.dtype)
        kind = self.config.dual_norm
        return dual_norm(self.summary_norm, far_key, kind), dual_norm(self.summary_norm, far_value, kind)

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See Mixer.initial_state. Of a memory that forgets, the size doesn't depend on the length."""
        return self._stream().initial_state(batch, length, like)

    def step(
        self,
        state: State,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See Mixer.step."""
        assert query is not None
        assert key is not None
        assert value is not None
        stream = self._stream()
        moment = stream.moment(state)
        near_key, near_value = self.near(key), self.near(value)
        state = stream.take_in(state, moment, query, near_key, near_value, padding)
        columns = stream.tokens(state, moment, bias)
        if self.retrieve:
            columns.append(stream.retrieved(state, bias))
        if self.rank and self.pooling is not None:
            reads = key if source is None or self.config.project_from == "key" else source[:, None]
            state = stream.pool_in(state, moment, self.pooling, reads, key, value, padding)
            columns.append(stream.summaries(state, moment, self.as_seen, self.summary_bias, bias))
        mixed = stream.attend(query, columns, self.spec.dropout if self.training else 0.0)
        return mixed, {**state, "time": state["time"] + 1}

    def state_after(self, length: int, **operands: Tensor | None) -> State:
        """See Mixer.state_after."""
        if self.retrieve:
            return super().state_after(length, **operands)
        key, value, source, padding = (operands.get(name) for name in ("key", "value", "source", "padding"))
        assert key is not None
        assert value is not None
        stream, exist = self._stream(), existing_tokens(padding, value)
        state = stream.initial_state(value.shape[0], length, value)
        state = after_tokens(stream, state, self.near(key), self.near(value), exist)
        if self.rank and self.pooling is not None:
            reads = key if source is None or self.config.project_from == "key" else source[:, None]
            state = after_summaries(stream, state, self.pooling, reads, key, value, exist)
        return state

    def _stream(self) -> Stream:
        if not self.spec.causal:
            raise NoStepError("'long_short' can't go token by token where queries see tokens to come")
        return Stream(self.spec, self.config, self.sinks, self.rank, self.retrieve, self.align)

    def reference(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """One query at a time over the list of what it sees."""
        assert query is not None
        assert key is not None
        assert value is not None
        parameters = dict(self.named_parameters())
        return long_short_reference(self.spec, self.config, parameters, query, key, value, padding, bias, source)
