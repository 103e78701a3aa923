"""The Long-Short mixer's view of one process: the tiles that hold its queries, in the places of the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.mixers.long_short.sight import Sight
from remixer.mixers.long_short.windows import Tiling


@dataclass(frozen=True)
class OwnTiling(Tiling):
    """The tiles that hold a process's queries: all of them at once, first = 0 and stop = `tiles`.

    Queries in them that are of another process see something, which is dropped.

    Attributes:
        start: (1,) int64, the place of the first query of the first tile.
        own: (1,) int64, the place of the process's first token.
        part: n, how many tokens it has.
        halo: how many tokens the keys have before its own.
        tiles: how many tiles.
    """

    start: Tensor
    own: Tensor
    part: int
    halo: int
    tiles: int

    def count(self, tokens: int) -> int:
        """See Tiling.count."""
        return self.tiles

    def queries(self, tokens: Tensor, groups: int, first: int, stop: int) -> Tensor:
        """Of the process's queries, see Tiling.queries."""
        places = self._run(0, 0, tokens.device) - self.own
        run = tokens.index_select(2, places.clamp(0, self.part - 1))
        return run.unflatten(2, (self.tiles, self.length)).unflatten(1, (-1, groups)).transpose(2, 3)

    def keys(self, tokens: Tensor, first: int, stop: int) -> Tensor:
        """Of the process's keys with those beside them, see Tiling.keys."""
        places = self._run(self.before, self.after, tokens.device) - self.own + self.halo
        run = tokens.index_select(2, places.clamp(0, tokens.shape[2] - 1))
        return run.unfold(2, self.span, self.length).transpose(3, 4)

    def exist(self, padding: Tensor, first: int, stop: int) -> Tensor:
        """Of the whole sequence's (B, T), see Tiling.exist."""
        places, T = self._run(self.before, self.after, padding.device), padding.shape[1]
        run = padding.index_select(1, places.clamp(0, T - 1)).masked_fill((places < 0) | (places >= T), 0)
        return run.unfold(1, self.span, self.length)

    def untiled(self, mixed: Tensor, tokens: int) -> Tensor:
        """The process's queries, (B, H, n, E)."""
        whole = mixed.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole.index_select(2, torch.arange(self.part, device=mixed.device) + self.own - self.start)

    def positions(self, first: int, stop: int, device: torch.device) -> Tensor:
        """See Tiling.positions."""
        return super().positions(first, stop, device) + self.start

    def _run(self, before: int, after: int, device: torch.device) -> Tensor:
        """The places of all tiles, and of so many tokens around them."""
        return torch.arange(-before, self.tiles * self.length + after, device=device) + self.start


@dataclass(frozen=True, eq=False)
class OwnSight(Sight):
    """What a process's queries see. `exist`, sinks and counts are of the whole sequence."""

    def _seen_summaries(self, far: Tensor, first: int, stop: int) -> Tensor:
        places = self.memory.places(self.nodes(first, stop))
        return far.unflatten(2, (-1, self.rank))[:, :, places].flatten(3, 4)


def tiles_for(causal: bool, window: int, own: Tensor, part: int) -> tuple[Tensor, int]:
    """Where the first tile starts, and how many hold a process's queries.

    Causal windows follow their query, so tiles may start anywhere. Others lie on a grid, and a process's tokens may
    begin and end in the middle of one.
    """
    if causal:
        return own, at_least_two((part + window - 1) // window)
    return own.div(window, rounding_mode="floor") * window, at_least_two((part + window - 2) // window + 1)


def at_least_two(count: int) -> int:
    """In a graph one more: traced where there is one, it would take that for what always is."""
    return count + 1 if torch.compiler.is_compiling() else count
