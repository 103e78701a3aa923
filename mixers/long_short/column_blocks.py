"""Which blocks of the columns [summaries; sinks; unused; tokens] the queries of the Long-Short attention look at.

A query sees one interval of each level of summaries, and one of the tokens. Unused columns make the tokens begin where
a block does, so that most windows are made of whole blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.long_short.intervals import Intervals
from remixer.mixers.long_short.whole import Whole, kept

BLOCK = 128  # queries, and columns, that a kernel takes or skips together


class Layout(NamedTuple):
    """Where the columns stand.

    Attributes:
        ends: behind the summaries of each level.
        sinks: how many.
        tokens: how many.
    """

    ends: tuple[int, ...]
    sinks: int
    tokens: int

    @property
    def summaries(self) -> int:
        """How many columns are summaries."""
        return self.ends[-1] if self.ends else 0

    @property
    def unused(self) -> int:
        """How many columns are nothing."""
        return -(self.summaries + self.sinks) % BLOCK

    @property
    def first(self) -> int:
        """Where the tokens begin."""
        return self.summaries + self.sinks + self.unused

    @property
    def columns(self) -> int:
        """How many there are."""
        return self.first + self.tokens


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


@kept
def layout_of(whole: Whole) -> Layout:
    """Where the columns of such a sequence stand."""
    sizes: list[int] = []
    if whole.rank:
        sizes = whole.without_sinks().memory.sizes if whole.spec.causal else [1]
    ends = tuple(sum(sizes[: level + 1]) * whole.rank for level in range(len(sizes)))
    return Layout(ends, whole.sinks, whole.tokens)


def blocks_of(whole: Whole) -> Blocks:
    """All blocks that hold something that some query of a block sees, whether it exists or not."""
    intervals, layout = Intervals.of(whole), layout_of(whole)
    rows, block = -(-whole.tokens // BLOCK), torch.arange(-(-layout.columns // BLOCK), device=whole.device)
    needed = torch.zeros(rows, len(block), dtype=torch.bool, device=whole.device)
    first = 0
    for end, (low, high) in zip(layout.ends, intervals.nodes, strict=True):
        needed |= _touched(low * whole.rank, high * whole.rank, first, end - first, block)
        first = end
    if whole.sinks:  # wherever they stand
        last = layout.summaries + whole.sinks - 1
        needed |= (block >= layout.summaries // BLOCK) & (block <= last // BLOCK)
    start, stop = intervals.tokens
    needed |= _touched(start, stop, layout.first, whole.tokens, block)
    place = block * BLOCK - layout.first
    covered = (place >= _by_block(start).amax(1)[:, None]) & (place + BLOCK <= _by_block(stop).amin(1)[:, None])
    covered &= (place >= 0) & (place + BLOCK <= whole.tokens)
    if whole.tokens % BLOCK:
        covered[-1] = False
    return Blocks(*_in_order(needed & ~covered), *_in_order(covered))


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
