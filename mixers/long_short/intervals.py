"""Which columns a query of the Long-Short attention sees: an interval of tokens, and of each level of summaries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.long_short.sight import Sight
from remixer.mixers.long_short.whole import Whole

Interval = tuple[Tensor, Tensor]  # (T,) the first, and (T,) the one behind the last


class Intervals(NamedTuple):
    """What all queries see of a sequence, sinks aside.

    Attributes:
        tiles: the tokens of the window that the mixer gives a query; may reach beyond the sequence.
        tokens: of these, what the window of the attention that is replaced leaves.
        nodes: the nodes of each level of summaries; empty if there are none.
    """

    tiles: Interval
    tokens: Interval
    nodes: list[Interval]

    @classmethod
    def of(cls, whole: Whole) -> Intervals:
        """Of a sequence, whether its tokens exist or not."""
        sight, (left, right) = whole.without_sinks(), whole.spec.window
        start, stop = first, last = _tiles(sight)
        place = torch.arange(whole.tokens, device=whole.device)
        if left is not None:
            first = torch.maximum(first, place - left)
        if right is not None:
            last = torch.minimum(last, place + right + 1)
        return cls((start, stop), (first, last), _nodes(sight, start) if whole.rank else [])


def _tiles(sight: Sight) -> Interval:
    """Where the window of each query starts, and what is behind its end."""
    tiling, T, device = sight.tiling, sight.exist.shape[1], sight.exist.device
    tiles = tiling.count(T)
    query = tiling.positions(0, tiles, device)
    if sight.spec.causal:
        return sight.start(0, tiles).flatten()[:T], (query + 1).flatten()[:T]
    start = (query[:, :1] - tiling.before).expand_as(query)
    return start.flatten()[:T], (start + tiling.span).flatten()[:T]


def _nodes(sight: Sight, start: Tensor) -> list[Interval]:
    """Which nodes of each level each query sees, whose window starts there."""
    if not sight.spec.causal:
        return [(torch.zeros_like(start), torch.ones_like(start))]
    return sight.memory.visible(start.div(sight.config.segment, rounding_mode="floor"))
