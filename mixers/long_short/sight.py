"""What a tile of queries sees, column by column: [summaries; sinks; window], and what each column weighs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.joint_attention import hidden_score
from remixer.mixers.long_short.memory import Memory, existing_in_segments
from remixer.mixers.long_short.overlapping import overlapping
from remixer.mixers.long_short.sinks import first_existing, gather_tokens
from remixer.mixers.long_short.summaries import log_share
from remixer.mixers.long_short.windows import Tiling
from remixer.mixers.spec import AttentionSpec

LEAST_HALF = 32  # tokens; products of smaller tiles cost more than they save


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


class Patch(NamedTuple):
    """Something to add to the scores of some tiles and columns.

    Attributes:
        tiles: of a run.
        columns: of these tiles.
        bias: (B or 1, 1, tiles, 1, length or 1, columns).
    """

    tiles: slice
    columns: slice
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Sight:
    """One sequence as the Long-Short mixer sees it, for any run of tiles first..stop-1.

    Attributes:
        spec: of the attention that is replaced.
        config: of the mixer.
        tiling: the tiles.
        exist: (B or 1, T) bool, which keys exist.
        sinks: (B or 1, sinks) positions and whether there is such a token, or None.
        rank: summaries of the sequence, or of every segment if causal; 0 for none.
        align: causal windows start at a multiple of so many tokens.
        counts: (B or 1, nodes), how many tokens of each causal summary exist, in the order of the memory's table;
            empty if there are none.
    """

    spec: AttentionSpec
    config: LongShort
    tiling: Tiling
    exist: Tensor
    sinks: tuple[Tensor, Tensor] | None
    rank: int
    align: int
    counts: Tensor

    @classmethod
    def of(cls, spec: AttentionSpec, config: LongShort, exist: Tensor, sinks: int, rank: int, align: int) -> Sight:
        """The sight of a sequence; a window that covers it needs one tile and no sinks."""
        T, w = exist.shape[1], config.window
        counts = exist[:, :0]
        if spec.causal and rank:
            counts = _memory(config, T).table(existing_in_segments(exist, config.segment))
        if covers(w, T):
            return cls(spec, config, Tiling(T, 0, 0), exist, None, rank, align, counts)
        tiling = Tiling(w, w // 2, w // 2)
        if spec.causal:
            tiling = Tiling(w, w + (align - 1 if w % align else 0), 0)
        first = first_existing(exist, sinks) if sinks else None
        return cls(spec, config, tiling, exist, first, rank, align, counts)

    def in_halves(self) -> Sight:
        """In tiles of about half the length, where causal queries see the same in fewer hidden columns."""
        length = -(-self.tiling.length // (2 * self.align)) * self.align
        if not self.spec.causal or not self.tiling.before or length < LEAST_HALF:
            return self
        return self.in_tiles_of(length)

    def in_tiles_of(self, length: int) -> Sight:
        """The same in tiles of another length; for causal queries, whose windows are their own."""
        return replace(self, tiling=replace(self.tiling, length=length))

    def bias(self, first: int, stop: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of every column, hidden ones included.

        Returns:
            (B or 1, 1, tiles, 1, length or 1, columns); length 1 where all queries of a tile see the same.
        """
        hidden = hidden_score(dtype)
        tokens = self._tokens_in_sight(first, stop)
        nothing = torch.zeros((), dtype=dtype, device=self.exist.device)
        parts = [nothing.masked_fill(~seen, hidden) for seen in tokens]
        if self.rank and self.spec.causal:
            parts.insert(0, self._node_scores(first, stop, hidden, dtype))
        elif self.rank:
            scores = self.share(self._stand_for(tokens), hidden, dtype)
            parts.insert(0, scores[..., None].expand(*scores.shape, self.rank))
        rows = max(part.shape[2] for part in parts)
        parts = [part.expand(-1, stop - first, rows, -1) for part in parts]
        return torch.cat(parts, -1)[:, None, :, None]

    def stand_for(self, first: int, stop: int) -> Tensor:
        """(B or 1, tiles, length or 1), for how many tokens the summaries of a whole sequence stand."""
        return self._stand_for(self._tokens_in_sight(first, stop))

    def share(self, count: Tensor, hidden: float, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of bidirectional summaries that stand for so many tokens, see `log_share`.

        Each weighs one token at most: all that lies beyond a window would drown it the sooner, the longer the text.
        """
        return log_share(count.clamp(max=self.rank), self.rank, self.config.counted, hidden, dtype)

    def _stand_for(self, tokens: list[Tensor]) -> Tensor:
        count = self.exist.sum(-1)[:, None, None]
        if self.config.counted:  # whoever is seen needs no one to stand for it
            for seen in tokens:
                count = count - seen.sum(-1)
        return count

    def _tokens_in_sight(self, first: int, stop: int) -> list[Tensor]:
        """Which sinks, if there are any, and which tokens of the window: (B or 1, tiles, length or 1, columns) bool."""
        window, band = self.tiling.exist(self.exist, first, stop)[:, :, None], self._band(first, stop)
        tokens = [window if band is None else window & band]
        return tokens if self.sinks is None else [self._sinks_in_sight(first, stop), *tokens]

    def patches(self, first: int, stop: int, dtype: torch.dtype, masked: bool) -> list[Patch]:
        """`bias` on a CPU, as the parts of it that are not 0; kept between calls unless some keys don't exist."""
        if masked:
            return [Patch(slice(None), slice(None), self.bias(first, stop, dtype))]
        sinks = 0 if self.sinks is None else self.sinks[0].shape[1]
        same = self._first_like(first, stop)
        run = (same, same + stop - first)
        kind = (self.exist.shape[1], sinks, self.rank, self.align, self.tiling.length)
        return _patches_without_padding(self.spec, self.config, kind, run, dtype)

    def tokens(self, near: Tensor, far: Tensor | None) -> Tokens:
        """Keys or values, with the sinks picked out: near (B, G, T, D), far (B, G, summaries, D)."""
        return Tokens(near, None if self.sinks is None else gather_tokens(near, self.sinks[0]), far)

    def joined(self, tokens: Tokens, first: int, stop: int) -> Tensor:
        """Keys or values of all columns, (B, G, tiles, columns, D)."""
        parts = self.in_parts(tokens, first, stop)
        return torch.cat(parts, 3) if len(parts) > 1 else parts[0]

    def in_parts(self, tokens: Tokens, first: int, stop: int) -> list[Tensor]:
        """Summaries and sinks, as far as there are any, and the window: (B, G, tiles, columns, D) each."""
        parts = [part.expand(-1, -1, stop - first, -1, -1) for part in self._far_parts(tokens, first, stop)]
        return [*parts, self.tiling.keys(tokens.near, first, stop)]

    def far_in_parts(self, tokens: Tokens, first: int, stop: int) -> list[Tensor]:
        """All columns but the window, not repeated where tiles share them: (B, G, tiles or 1, columns, D) each."""
        parts = self._far_parts(tokens, first, stop)
        return parts if self.spec.causal or len(parts) < 2 else [torch.cat(parts, 3)]

    def _far_parts(self, tokens: Tokens, first: int, stop: int) -> list[Tensor]:
        """Summaries and sinks, each (B, G, tiles or 1, columns, D)."""
        parts = []
        if tokens.far is not None and self.spec.causal:
            parts.append(self._seen_summaries(tokens.far, first, stop))
        elif tokens.far is not None:
            parts.append(tokens.far[:, :, None])
        if tokens.sinks is not None:
            parts.append(tokens.sinks[:, :, None])
        return parts

    def _seen_summaries(self, far: Tensor, first: int, stop: int) -> Tensor:
        """Of (B, G, nodes * rank, D) what each tile holds, (B, G, tiles, columns, D)."""
        config, length = self.config, self.tiling.length
        if not isinstance(config.memory, int) or length % config.segment or not plain(far):
            places = self.memory.places(self.nodes(first, stop))
            return far.unflatten(2, (-1, self.rank))[:, :, places].flatten(3, 4)
        # From tile to tile the same number of nodes further on: a view.
        start = (first * length - config.window + 1) // self.align * self.align // config.segment - config.memory
        step, columns = length // config.segment, self.summaries // self.rank
        return overlapping(far, start * self.rank, columns * self.rank, step * self.rank, stop - first)

    @property
    def memory(self) -> Memory:
        """Which summaries causal queries see."""
        return _memory(self.config, self.exist.shape[1])

    @property
    def summaries(self) -> int:
        """How many columns of a tile are summaries."""
        return self.rank * (sum(self.memory.columns(self._spread)) if self.spec.causal else 1)

    @property
    def width(self) -> int:
        """How many columns a tile has."""
        return self.summaries + (0 if self.sinks is None else self.sinks[0].shape[1]) + self.tiling.span

    def _band(self, first: int, stop: int) -> Tensor | None:
        """(tiles or 1, length, span) bool, what queries see by the place of keys; None for all."""
        if self.tiling.length % self.align == 0:
            first, stop = 0, 1  # the same in every tile
        left, right = self.spec.window
        band = None
        if self.spec.causal:
            query = self.tiling.positions(first, stop, self.exist.device)[..., None]
            key = query[:, :1] - self.tiling.before + torch.arange(self.tiling.span, device=self.exist.device)
            band = (key <= query) & (key >= self.start(first, stop)[..., None])
        ahead = self.tiling.ahead(self.exist.device)
        if left is not None:
            band = ahead <= left if band is None else band & (ahead <= left)
        if right is not None:
            band = ahead >= -right if band is None else band & (ahead >= -right)
        return band

    def start(self, first: int, stop: int) -> Tensor:
        """(tiles, length), where the window of each causal query starts; negative before the sequence."""
        earliest = self.tiling.positions(first, stop, self.exist.device) - self.config.window + 1
        return earliest.div(self.align, rounding_mode="floor") * self.align

    def _sinks_in_sight(self, first: int, stop: int) -> Tensor:
        """(B or 1, tiles, length or 1, sinks) bool: those that exist, outside of the window, not to come."""
        assert self.sinks is not None
        position, there = self.sinks[0][:, None, None], self.sinks[1][:, None, None]
        if self.spec.causal:
            return there & (position < self.start(first, stop)[..., None])
        start = self.tiling.positions(first, stop, self.exist.device)[:, :1, None] - self.tiling.before
        return there & ((position < start) | (position >= start + self.tiling.span))

    def _first_like(self, first: int, stop: int) -> int:
        """Where the first run of as many tiles starts whose queries see the same by distance, if all keys exist."""
        spec, config, tiling = self.spec, self.config, self.tiling
        sinks = 0 if self.sinks is None else self.sinks[0].shape[1]
        if not spec.causal:
            inside = stop * tiling.length + tiling.after <= self.exist.shape[1]
            settled = -(-(tiling.before + sinks) // tiling.length)
            return min(first, settled) if inside else first
        if tiling.length % self.align:
            return first
        settled = -(-(config.window + sinks) // tiling.length)
        if self.rank:
            if not isinstance(config.memory, int):
                return first
            settled = max(settled, -(-(config.window + config.memory * config.segment) // tiling.length))
        return min(first, settled)

    @property
    def _spread(self) -> int:
        """How many segments begin between the windows of a tile's first query and its last."""
        return -(-(self.tiling.length - 1) // self.config.segment)

    def _before(self, first: int, stop: int) -> Tensor:
        """(tiles, length), how many whole segments lie before each query's window, which starts where one does."""
        return self.start(first, stop).div(self.config.segment, rounding_mode="floor")

    def nodes(self, first: int, stop: int) -> list[Tensor]:
        """(tiles, columns) of each level of the memory, the summaries that tiles hold; some may not exist."""
        return self.memory.nodes(self._before(first, stop)[:, 0], self._spread)

    def _node_scores(self, first: int, stop: int, hidden: float, dtype: torch.dtype) -> Tensor:
        """(B or 1, tiles, length, columns * rank), of causal summaries."""
        memory, nodes = self.memory, self.nodes(first, stop)
        share = log_share(self.counts, self.rank, self.config.counted, hidden, dtype)
        seen = memory.seen(nodes, self._before(first, stop))
        scores = share[:, memory.places(nodes)][:, :, None].masked_fill(~seen, hidden)
        return scores.repeat_interleave(self.rank, -1)


def covers(window: int, tokens: int | torch.SymInt) -> bool:
    """Whether a window holds a whole sequence. In an exported graph, which has to hold at any length, none does."""
    if torch.compiler.is_exporting() and not isinstance(tokens, int):
        return False
    return bool(window >= tokens)


def _memory(config: LongShort, tokens: int) -> Memory:
    """Which summaries causal queries of so many tokens see."""
    return Memory.of(config.memory, config.per_size, -(-tokens // config.segment))


@functools.lru_cache(maxsize=64)
def _patches_without_padding(
    spec: AttentionSpec,
    config: LongShort,
    kind: tuple[int, int, int, int, int],
    run: tuple[int, int],
    dtype: torch.dtype,
) -> list[Patch]:
    """Where most tiles add something, all do at once; what some tiles add elsewhere is added for each by itself."""
    tokens, sinks, rank, align, length = kind
    exist = torch.ones(1, tokens, dtype=torch.bool)
    sight = Sight.of(spec, config, exist, sinks, rank, align)
    bias = sight.in_tiles_of(length).bias(*run, dtype)
    used = bias.ne(0.0).flatten(3, 4).any(3)[0, 0]  # (tiles, columns)
    most = 2 * used.sum(0) > len(used)
    patches = [Patch(slice(None), columns, bias[..., columns]) for columns in _runs(most)]
    for tile, theirs in enumerate(used & ~most):
        some = slice(tile, tile + 1)
        patches.extend(Patch(some, columns, bias[:, :, some, :, :, columns]) for columns in _runs(theirs))
    return patches


def _runs(used: Tensor) -> list[slice]:
    """Where a (columns,) bool tensor is True, in runs."""
    ends = torch.diff(F.pad(used.to(torch.int8), (1, 1))).nonzero()[:, 0].tolist()
    return [slice(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True)]
