"""What a tile of queries sees, column by column: [summaries; sinks; window], and what each column weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remixer.mixers.joint_attention import hidden_score
from remixer.mixers.sinks import first_existing, gather_tokens
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.summaries import log_share, to_multiple
from remixer.mixers.windows import Tiling


class Tokens(NamedTuple):
    """The keys, or the values, that queries may see.

    Attributes:
        near: (B, G, T, D), all tokens.
        sinks: (B, G, sinks, D), or None.
        far: (B, G, summaries, D), or None.
    """

    near: Tensor
    sinks: Tensor | None = None
    far: Tensor | None = None


def join(parts: list[Tensor]) -> Tensor:
    """What `Sight.parts` gave, or some heads of it, as (B * tiles, G, columns, D)."""
    return (torch.cat(parts, 3) if len(parts) > 1 else parts[0]).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Sight:
    """One sequence as the Long-Short mixer sees it, for any run of tiles first..stop-1.

    Attributes:
        spec: of the attention that is replaced.
        config: a LongShort config.
        tiling: the tiles.
        exist: (B or 1, T) bool, which keys exist.
        sinks: (B or 1, sinks) positions and whether there is such a token, or None.
        rank: summaries of the sequence, or of every segment if causal; 0 for none.
    """

    spec: AttentionSpec
    config: Any
    tiling: Tiling
    exist: Tensor
    sinks: tuple[Tensor, Tensor] | None
    rank: int

    @classmethod
    def of(cls, spec: AttentionSpec, config: Any, exist: Tensor, sinks: int, rank: int) -> Sight:
        """The sight of a sequence; a window that covers it needs one tile and no sinks."""
        T, w = exist.shape[1], config.window
        if w >= T:
            return cls(spec, config, Tiling(T, 0, 0), exist, None, rank)
        tiling = Tiling(w, w, 0) if spec.causal else Tiling(w, w // 2, w // 2)
        return cls(spec, config, tiling, exist, first_existing(exist, sinks) if sinks else None, rank)

    def bias(self, first: int, stop: int, samples: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of every column, hidden ones included.

        Returns:
            (B * tiles, 1, length or 1, columns); 1 where all queries of a tile see the same.
        """
        hidden = hidden_score(dtype)
        window = self.tiling.exist(self.exist, first, stop)[:, :, None]
        band = self._band()
        tokens = [window if band is None else window & band]
        if self.sinks is not None:
            tokens.insert(0, self._sinks_in_sight(first, stop))
        nothing = torch.zeros((), dtype=dtype, device=self.exist.device)
        parts = [nothing.masked_fill(~seen, hidden) for seen in tokens]
        if self.rank and self.spec.causal:
            parts.insert(0, self._segment_scores(first, stop, hidden, dtype))
        elif self.rank:
            count = self.exist.sum(-1)[:, None, None]
            if self.config.counted:  # whoever is seen needs no one to stand for it
                for seen in tokens:
                    count = count - seen.sum(-1)
            scores = log_share(count, self.rank, self.config.counted, hidden, dtype)
            parts.insert(0, scores[..., None].expand(*scores.shape, self.rank))
        rows = max(part.shape[2] for part in parts)
        parts = [part.expand(samples, stop - first, rows, -1) for part in parts]
        return torch.cat(parts, -1).flatten(0, 1)[:, None]

    def tokens(self, near: Tensor, far: Tensor | None) -> Tokens:
        """Keys or values, with the sinks picked out: near (B, G, T, D), far (B, G, summaries, D)."""
        return Tokens(near, None if self.sinks is None else gather_tokens(near, self.sinks[0]), far)

    def parts(self, tokens: Tokens, first: int, stop: int) -> list[Tensor]:
        """Keys or values of all columns, each part (B, tiles, G, columns, D); most are views."""
        parts = [self.tiling.keys(tokens.near, first, stop)]
        if tokens.sinks is not None:
            parts.insert(0, tokens.sinks[:, None].expand(-1, stop - first, -1, -1, -1))
        if tokens.far is not None and self.spec.causal:
            by_segment = tokens.far.unflatten(2, (-1, self.rank))
            index = self._segments(first, stop).clamp(0, by_segment.shape[2] - 1)
            parts.insert(0, by_segment[:, :, index].flatten(3, 4).transpose(1, 2))
        elif tokens.far is not None:
            parts.insert(0, tokens.far[:, None].expand(-1, stop - first, -1, -1, -1))
        return parts

    @property
    def summaries(self) -> int:
        """How many columns of a tile are summaries."""
        return self.rank * (self._reach() if self.spec.causal else 1)

    @property
    def width(self) -> int:
        """How many columns a tile has."""
        return self.summaries + (0 if self.sinks is None else self.sinks[0].shape[1]) + self.tiling.span

    def _band(self) -> Tensor | None:
        """(length, span) bool, what queries see by their distance from keys; None for all."""
        ahead = self.tiling.ahead(self.exist.device)
        left, right = self.spec.window
        band = None
        if self.spec.causal:
            band = (ahead >= 0) & (ahead < self.config.window)
        if left is not None:
            band = ahead <= left if band is None else band & (ahead <= left)
        if right is not None:
            band = ahead >= -right if band is None else band & (ahead >= -right)
        return band

    def _sinks_in_sight(self, first: int, stop: int) -> Tensor:
        """(B or 1, tiles, length or 1, sinks) bool: those that exist, outside of the window, not to come."""
        assert self.sinks is not None
        position, there = self.sinks[0][:, None, None], self.sinks[1][:, None, None]
        query = self.tiling.positions(first, stop, self.exist.device)
        if self.spec.causal:
            return there & (position <= query[..., None] - self.config.window)
        start = query[:, :1, None] - self.tiling.before
        return there & ((position < start) | (position >= start + self.tiling.span))

    def _reach(self) -> int:
        """How many segments the queries of a tile see between them."""
        segment, memory = self.config.segment, self.config.memory
        if memory is None:
            return -(-self.exist.shape[1] // segment)
        # The last query's window starts length - 1 tokens after the first's: so many segments more are seen.
        return memory - (-(self.tiling.length - 1) // segment)

    def _segments(self, first: int, stop: int) -> Tensor:
        """(tiles, segments), which segments' summaries the tiles hold; some may not exist."""
        reach = torch.arange(self._reach(), device=self.exist.device)
        if self.config.memory is None:
            return reach.expand(stop - first, -1)
        start = self.tiling.positions(first, stop, self.exist.device)[:, :1] - self.config.window + 1
        return start.div(self.config.segment, rounding_mode="floor") - self.config.memory + reach

    def _segment_scores(self, first: int, stop: int, hidden: float, dtype: torch.dtype) -> Tensor:
        """(B or 1, tiles, length, segments * rank): segments wholly before the window, the latest ones."""
        segment = self.config.segment
        index = self._segments(first, stop)
        start = self.tiling.positions(first, stop, self.exist.device) - self.config.window + 1
        before = start.div(segment, rounding_mode="floor")[..., None]  # segments that end before the window
        seen = (index >= 0)[:, None] & (index[:, None] < before)
        if self.config.memory is not None:
            seen = seen & (index[:, None] >= before - self.config.memory)
        count = to_multiple(self.exist, 1, segment).unflatten(1, (-1, segment)).sum(-1)
        share = log_share(count, self.rank, self.config.counted, hidden, dtype)
        scores = share[:, index.clamp(0, share.shape[1] - 1)][:, :, None].masked_fill(~seen, hidden)
        return scores.repeat_interleave(self.rank, -1)
