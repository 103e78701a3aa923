"""What a tile of queries sees, column by column: [summaries; sinks; window], and how much each column weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.joint_attention import hidden_score
from remixer.mixers.sinks import first_existing, gather_tokens
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.summaries import log_share
from remixer.mixers.windows import Tiling


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

    def bias(self, first: int, stop: int, B: int, dtype: torch.dtype) -> Tensor:
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
        parts = [torch.where(seen, 0.0, hidden).to(dtype) for seen in tokens]
        if self.rank and self.spec.causal:
            parts.insert(0, self._segment_scores(first, stop, hidden, dtype))
        elif self.rank:
            near = sum(seen.sum(-1) for seen in tokens)
            rest = self.exist.sum(-1)[:, None, None] - near if self.config.counted else self.exist.sum(-1)[:, None, None]
            scores = log_share(rest, self.rank, self.config.counted, hidden, dtype)
            parts.insert(0, scores[..., None].expand(*scores.shape, self.rank))
        samples, rows = max(part.shape[0] for part in parts), max(part.shape[2] for part in parts)
        parts = [part.expand(samples, stop - first, rows, -1) for part in parts]
        return torch.cat(parts, -1).expand(B, -1, -1, -1).flatten(0, 1)[:, None]

    def columns(self, near: Tensor, sinks: Tensor | None, far: Tensor | None, first: int, stop: int) -> Tensor:
        """Keys or values of all columns.

        Args:
            near: (B, G, T, D), the tokens.
            sinks: (B, G, sinks, D), or None.
            far: (B, G, summaries, D), or None.
            first: tile to start with.
            stop: tile to end before.

        Returns:
            (B * tiles, G, columns, D).
        """
        parts = [self.tiling.keys(near, first, stop)]
        if sinks is not None:
            parts.insert(0, self._for_tiles(sinks, stop - first))
        if far is not None and self.spec.causal:
            index = self._segments(first, stop)
            by_segment = far.unflatten(2, (-1, self.rank))
            seen = by_segment[:, :, index.clamp(0, by_segment.shape[2] - 1)].flatten(3, 4)
            parts.insert(0, seen.transpose(1, 2).flatten(0, 1))
        elif far is not None:
            parts.insert(0, self._for_tiles(far, stop - first))
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def gather_sinks(self, tokens: Tensor) -> Tensor | None:
        """(B, G, T, D) to (B, G, sinks, D), or None if there are none."""
        return None if self.sinks is None else gather_tokens(tokens, self.sinks[0])

    def width(self, T: int) -> int:
        """The number of columns of one tile."""
        sinks = 0 if self.sinks is None else self.sinks[0].shape[1]
        summaries = self._reach(T) if self.spec.causal else 1
        return self.tiling.span + sinks + self.rank * summaries

    def _for_tiles(self, shared: Tensor, tiles: int) -> Tensor:
        """(B, G, n, D), the same for all tiles, to (B * tiles, G, n, D)."""
        return shared[:, None].expand(-1, tiles, -1, -1, -1).flatten(0, 1)

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
        """(B or 1, tiles, length or 1, sinks) bool: those that exist, outside of the window and not to come."""
        assert self.sinks is not None
        position, there = self.sinks[0][:, None, None], self.sinks[1][:, None, None]
        query = self.tiling.positions(first, stop, self.exist.device)
        if self.spec.causal:
            return there & (position <= query[..., None] - self.config.window)
        start = query[:, :1, None] - self.tiling.before
        return there & ((position < start) | (position >= start + self.tiling.span))

    def _reach(self, T: int) -> int:
        """How many segments the queries of a tile see between them."""
        segment, memory = self.config.segment, self.config.memory
        if memory is None:
            return T // segment
        # The last query's window starts length - 1 tokens after the first's, and lets in as many segments more.
        return memory - (-(self.tiling.length - 1) // segment)

    def _segments(self, first: int, stop: int) -> Tensor:
        """(tiles, segments), which segments' summaries the tiles hold; some may not exist."""
        reach = torch.arange(self._reach(self.exist.shape[1]), device=self.exist.device)
        if self.config.memory is None:
            return reach.expand(stop - first, -1)
        start = self.tiling.positions(first, stop, self.exist.device)[:, :1] - self.config.window + 1
        return start.div(self.config.segment, rounding_mode="floor") - self.config.memory + reach

    def _segment_scores(self, first: int, stop: int, hidden: float, dtype: torch.dtype) -> Tensor:
        """(B or 1, tiles, length, segments * rank): segments wholly before the window, the latest ones."""
        segment, total = self.config.segment, self.exist.shape[1] // self.config.segment
        index = self._segments(first, stop)
        start = self.tiling.positions(first, stop, self.exist.device) - self.config.window + 1
        before = start.div(segment, rounding_mode="floor")[..., None]  # segments that end before the window
        seen = (index >= 0)[:, None] & (index[:, None] < before)
        if self.config.memory is not None:
            seen = seen & (index[:, None] >= before - self.config.memory)
        count = self.exist[:, : total * segment].unflatten(1, (total, segment)).sum(-1)
        share = log_share(count, self.rank, self.config.counted, hidden, dtype)
        scores = torch.where(seen, share[:, index.clamp(0, total - 1)][:, :, None], hidden)
        return scores.repeat_interleave(self.rank, -1)
