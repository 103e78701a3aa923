"""What every query of the Long-Short attention sees, as intervals over [summaries; sinks; unused; tokens].

A kind of column is a level of summaries, the sinks, or the tokens. Columns of a kind stand next to each other and
have ascending coordinates: nodes of the level, or positions. A query sees one interval of each kind. Unused columns
make the tokens begin where a block does, so that most windows are made of whole blocks.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.sight import Sight
from remixer.mixers.spec import AttentionSpec

BLOCK = 128  # queries, and columns, that a kernel takes or skips together
UNUSED = -1


class Intervals(NamedTuple):
    """What queries see of every kind.

    Attributes:
        kind: (columns,), of each column; levels of summaries come first, then sinks, UNUSED ones, then tokens.
        coordinate: (columns,), of each column; of sinks without padding.
        lower: (T,) of each kind, the first coordinate that each query sees.
        upper: (T,) of each kind, the one behind the last.
        outside: of each kind, whether what lies outside of the interval is seen instead.
        summary: (columns,) bool, which are summaries.
        summaries: how many columns are summaries.
        sinks: how many are sinks.
    """

    kind: Tensor
    coordinate: Tensor
    lower: tuple[Tensor, ...]
    upper: tuple[Tensor, ...]
    outside: tuple[bool, ...]
    summary: Tensor
    summaries: int
    sinks: int

    @property
    def unused(self) -> int:
        """How many columns are nothing."""
        return -(self.summaries + self.sinks) % BLOCK


class Blocks(NamedTuple):
    """Which blocks of columns each block of queries has to look at.

    Attributes:
        many: (1, 1, blocks of queries) int32, how many of them are seen in part.
        order: (1, 1, blocks of queries, blocks of columns) int32, those first.
        many_whole: (1, 1, blocks of queries) int32, how many are seen by every query as far as they exist.
        order_whole: (1, 1, blocks of queries, blocks of columns) int32, those first.
    """

    many: Tensor
    order: Tensor
    many_whole: Tensor
    order_whole: Tensor


class Whole(NamedTuple):
    """A sequence without padding, as the Long-Short mixer sees it: what everything here depends on."""

    spec: AttentionSpec
    config: LongShort
    tokens: int
    sinks: int
    rank: int
    align: int
    device: torch.device

    @classmethod
    def of(cls, sight: Sight) -> Whole:
        """What is seen of a sequence if all of it exists."""
        sinks = 0 if sight.sinks is None else sight.sinks[0].shape[1]
        exist = sight.exist
        return cls(sight.spec, sight.config, exist.shape[1], sinks, sight.rank, sight.align, exist.device)

    def sight(self, sinks: int) -> Sight:
        """It again, with so many sinks."""
        exist = torch.ones(1, self.tokens, dtype=torch.bool, device=self.device)
        return Sight.of(self.spec, self.config, exist, sinks, self.rank, self.align)


def intervals_of(sight: Sight) -> tuple[Intervals, Blocks]:
    """Of a whole sequence; kept between calls, since they don't depend on what exists."""
    with torch.inference_mode(False):  # or no later call could keep them for its gradients
        return _intervals_of(Whole.of(sight))


@functools.lru_cache(maxsize=32)
def _intervals_of(whole: Whole) -> tuple[Intervals, Blocks]:
    spec, T, sinks, rank, device = whole.spec, whole.tokens, whole.sinks, whole.rank, whole.device
    sight = whole.sight(sinks=0)
    start, stop = _window(sight)
    sizes, seen = _summaries(sight, start) if rank else ([], [])
    if sinks:
        seen.append((torch.full_like(start, torch.iinfo(torch.int32).min), start) if spec.causal else (start, stop))
    left, right = spec.window
    place = torch.arange(T, device=device)
    if left is not None:
        start = torch.maximum(start, place - left)
    if right is not None:
        stop = torch.minimum(stop, place + right + 1)
    seen.append((start, stop))
    summaries = sum(sizes) * rank
    nodes = [torch.arange(size, device=device).repeat_interleave(rank) for size in sizes]
    unused = place.new_full((-(summaries + sinks) % BLOCK,), UNUSED)
    kinds = [place.new_full((len(each),), level) for level, each in enumerate(nodes)]
    kinds += [place.new_full((sinks,), len(sizes)), unused, place.new_full((T,), len(seen) - 1)]
    intervals = Intervals(
        kind=torch.cat(kinds).int(),
        coordinate=torch.cat([*nodes, place[:1].new_tensor(range(sinks)), unused, place]).int(),
        lower=tuple(lower.int().contiguous() for lower, _ in seen),
        upper=tuple(upper.int().contiguous() for _, upper in seen),
        outside=tuple(sinks > 0 and not spec.causal and which == len(sizes) for which in range(len(seen))),
        summary=torch.arange(summaries + sinks + len(unused) + T, device=device) < summaries,
        summaries=summaries,
        sinks=sinks,
    )
    return intervals, _blocks(intervals, sizes, rank)


def _window(sight: Sight) -> tuple[Tensor, Tensor]:
    """Where the window of each query starts, and what is behind its end: (T,) each."""
    tiling, T, device = sight.tiling, sight.exist.shape[1], sight.exist.device
    tiles = tiling.count(T)
    query = tiling.positions(0, tiles, device)
    if sight.spec.causal:
        return sight.start(0, tiles).flatten()[:T], (query + 1).flatten()[:T]
    start = (query[:, :1] - tiling.before).expand_as(query)
    return start.flatten()[:T], (start + tiling.span).flatten()[:T]


def _summaries(sight: Sight, start: Tensor) -> tuple[list[int], list[tuple[Tensor, Tensor]]]:
    """How many nodes each level has, and which each query sees, whose window starts there."""
    if not sight.spec.causal:
        return [1], [(torch.zeros_like(start), torch.ones_like(start))]
    before = start.div(sight.config.segment, rounding_mode="floor")
    return sight.memory.sizes, list(sight.memory.visible(before))


def _blocks(intervals: Intervals, sizes: list[int], rank: int) -> Blocks:
    """All blocks that hold something that some query of a block sees, whether it exists or not."""
    device, columns, T = intervals.kind.device, intervals.kind.shape[0], intervals.lower[0].shape[0]
    block = torch.arange(-(-columns // BLOCK), device=device)
    rows = -(-T // BLOCK)
    needed = torch.zeros(rows, len(block), dtype=torch.bool, device=device)
    first = 0
    for level, size in enumerate(sizes):
        low, high = (side[level].long() * rank for side in (intervals.lower, intervals.upper))
        needed |= _touched(low, high, first, size * rank, block)
        first += size * rank
    if intervals.sinks:  # wherever they stand
        needed |= (block >= first // BLOCK) & (block <= (first + intervals.sinks - 1) // BLOCK)
    first = columns - T
    low, high = intervals.lower[-1].long(), intervals.upper[-1].long()
    needed |= _touched(low, high, first, T, block)
    place = block * BLOCK - first
    whole = (place >= _by_block(low).amax(1)[:, None]) & (place + BLOCK <= _by_block(high).amin(1)[:, None])
    whole &= (place >= 0) & (place + BLOCK <= T)
    if T % BLOCK:
        whole[-1] = False
    return Blocks(*_in_order(needed & ~whole), *_in_order(whole))


def _touched(low: Tensor, high: Tensor, first: int, count: int, block: Tensor) -> Tensor:
    """(blocks of queries, blocks), which hold some of the columns from low to high, of `count` that begin at first."""
    least = (_by_block(low).amin(1).clamp(min=0) + first)[:, None]
    most = (_by_block(high).amax(1).clamp(max=count) + first)[:, None]
    return (least < most) & (block >= least // BLOCK) & (block <= (most - 1) // BLOCK)


def _in_order(listed: Tensor) -> tuple[Tensor, Tensor]:
    """How many are listed in each row, and all of its blocks, those first."""
    order = torch.argsort(listed.logical_not().to(torch.uint8), dim=1, stable=True)
    return listed.sum(1)[None, None].int(), order[None, None].int()


def _by_block(ends: Tensor) -> Tensor:
    """(T,) to (blocks, BLOCK), the last block filled up with the last entry."""
    missing = -ends.shape[0] % BLOCK
    return torch.cat([ends, ends[-1:].expand(missing)]).unflatten(0, (-1, BLOCK))
