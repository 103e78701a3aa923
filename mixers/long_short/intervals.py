"""What every query of the Long-Short attention sees, as intervals over [summaries; sinks; tokens] of the sequence.

A kind of column is a level of summaries, the sinks, or the tokens. Columns of a kind stand next to each other and
have ascending coordinates: nodes of the level, or positions. A query sees one interval of each kind.
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


class Intervals(NamedTuple):
    """What queries see of every kind.

    Attributes:
        kind: (columns,), of each column; levels of summaries come first, then sinks, then tokens.
        coordinate: (columns,), of each column; of sinks 0, since theirs depend on the sample.
        lower: (kinds, T), the first coordinate that each query sees.
        upper: (kinds, T), the one behind the last.
        outside: (columns,) bool, what is seen instead lies outside of the interval.
        summary: (columns,) bool, which are summaries.
        summaries: how many columns are summaries.
        sinks: how many are sinks.
    """

    kind: Tensor
    coordinate: Tensor
    lower: Tensor
    upper: Tensor
    outside: Tensor
    summary: Tensor
    summaries: int
    sinks: int


class Blocks(NamedTuple):
    """Which blocks of columns each block of queries has to look at.

    Attributes:
        many: (1, 1, blocks of queries) int32, how many.
        order: (1, 1, blocks of queries, blocks of columns) int32, those to look at first.
    """

    many: Tensor
    order: Tensor


def intervals_of(sight: Sight) -> tuple[Intervals, Blocks]:
    """Of a whole sequence; kept between calls, since they don't depend on what exists."""
    sinks = 0 if sight.sinks is None else sight.sinks[0].shape[1]
    kind = (sight.exist.shape[1], sinks, sight.rank, sight.align)
    with torch.inference_mode(False):  # or no later call could keep them for its gradients
        return _intervals_of(sight.spec, sight.config, kind, sight.exist.device)


@functools.lru_cache(maxsize=32)
def _intervals_of(
    spec: AttentionSpec, config: LongShort, kind: tuple[int, int, int, int], device: torch.device
) -> tuple[Intervals, Blocks]:
    T, sinks, rank, align = kind
    sight = Sight.of(spec, config, torch.ones(1, T, dtype=torch.bool, device=device), 0, rank, align)
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
    counts = [size * rank for size in sizes] + [sinks] * (sinks > 0) + [T]
    nodes = [torch.arange(size, device=device).repeat_interleave(rank) for size in sizes]
    kinds = torch.repeat_interleave(torch.arange(len(counts), device=device), torch.tensor(counts, device=device))
    intervals = Intervals(
        kind=kinds.int(),
        coordinate=torch.cat([*nodes, place.new_zeros(sinks), place]).int(),
        lower=torch.stack([lower for lower, _ in seen]).int(),
        upper=torch.stack([upper for _, upper in seen]).int(),
        outside=(kinds == len(sizes)) & (sinks > 0 and not spec.causal),
        summary=kinds < len(sizes),
        summaries=sum(counts[: len(sizes)]),
        sinks=sinks,
    )
    return intervals, _blocks(intervals, counts, rank)


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


def _blocks(intervals: Intervals, counts: list[int], rank: int) -> Blocks:
    """All blocks that hold something that some query of a block sees, whether it exists or not."""
    device, columns = intervals.kind.device, intervals.kind.shape[0]
    block = torch.arange(-(-columns // BLOCK), device=device)
    ends = torch.arange(1, -(-intervals.lower.shape[1] // BLOCK) + 1, device=device) * BLOCK
    needed = torch.zeros(len(ends), len(block), dtype=torch.bool, device=device)
    first = 0
    for kind, count in enumerate(counts):
        last = first + count
        if first < intervals.summaries or last == columns:
            size = rank if first < intervals.summaries else 1
            lower, upper = (_by_block(side[kind].long() * size) for side in (intervals.lower, intervals.upper))
            low = (lower.amin(1).clamp(min=0) + first)[:, None]
            high = (upper.amax(1).clamp(max=count) + first)[:, None]
            needed |= (low < high) & (block >= low // BLOCK) & (block <= (high - 1) // BLOCK)
        else:  # sinks, wherever they stand
            needed |= (block >= first // BLOCK) & (block <= (last - 1) // BLOCK)
        first = last
    order = torch.argsort(needed.logical_not().to(torch.uint8), dim=1, stable=True)
    return Blocks(needed.sum(1)[None, None].int(), order[None, None].int())


def _by_block(ends: Tensor) -> Tensor:
    """(T,) to (blocks, BLOCK), the last block filled up with the last entry."""
    missing = -ends.shape[0] % BLOCK
    return torch.cat([ends, ends[-1:].expand(missing)]).unflatten(0, (-1, BLOCK))
