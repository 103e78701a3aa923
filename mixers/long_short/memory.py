"""Which causal summaries a query sees: the latest segments, or ever larger ones the further back they lie.

Level 0 holds the segments. Node i of level l + 1 stands for the nodes 2 i and 2 i + 1 of level l. All nodes stand
in one table, level after level. Nodes that lack something, since the sequence ends, are there and never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain_inference

Limit = int | Literal["dyadic"] | None
MOST_LEVELS = 16  # with 8 tokens a segment and 16 nodes a level, 8 million tokens back


@dataclass(frozen=True)
class Memory:
    """What lies before a window of a sequence.

    Attributes:
        limit: the latest so many segments, None for all, or "dyadic": about `per_size` of each level.
        per_size: how many nodes of a level stay before two of them are merged.
        segments: how many the whole sequence has, a last incomplete one included.
        levels: how many levels there are.
        halved: whether each level of the table is half as long as the one before; in a graph all are as long, see
            `pairs`.
    """

    limit: Limit
    per_size: int
    segments: int
    levels: int
    halved: bool = True

    @classmethod
    def of(cls, limit: Limit, per_size: int, segments: int) -> Memory:
        """With as many levels as so many segments need; in a graph, which doesn't know how many there are, all."""
        if limit == "dyadic" and torch.compiler.is_compiling():
            return cls(limit, per_size, segments, MOST_LEVELS, halved=False)
        return cls(limit, per_size, segments, levels_for(limit, per_size, segments))

    @property
    def sizes(self) -> list[int]:
        """How many nodes the table has of each level."""
        sizes = [self.segments]
        for _ in range(1, self.levels):
            sizes.append((sizes[-1] + 1) // 2 if self.halved else sizes[-1])
        return sizes

    def columns(self, spread: int) -> list[int]:
        """How many nodes of each level are seen by queries between whose windows `spread` segments begin."""
        if self.limit is None:
            return [self.segments]
        if self.limit != "dyadic":
            return [self.limit + spread]
        return [self.per_size + 1 - (-spread >> level) for level in range(self.levels)]

    def visible(self, before: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each level the first node that is seen, and the one behind the last.

        Args:
            before: how many whole segments lie before the query's window; negative where it starts before the
                sequence.
        """
        if self.limit is None:
            return [(torch.zeros_like(before), before)]
        if self.limit != "dyadic":
            return [((before - self.limit).clamp(min=0), before)]
        found, end = [], before
        for level in range(self.levels):
            merged = (end - self.per_size).clamp(min=0) // 2
            oldest = 2 * merged if level + 1 < self.levels else (end - self.per_size - 1).clamp(min=0)
            found.append((oldest, end))
            end = merged
        return found

    def nodes(self, before: Tensor, spread: int) -> list[Tensor]:
        """Of each level the nodes that some queries may see, (..., columns).

        Some don't exist; they are negative where a limit reaches back to before the sequence.

        Args:
            before: (...), see `visible`, of the first query.
            spread: see `columns`.
        """
        device = before.device
        starts = [oldest for oldest, _ in self.visible(before)]
        if isinstance(self.limit, int):
            starts = [before - self.limit]
        return [
            start[..., None] + torch.arange(columns, device=device)
            for start, columns in zip(starts, self.columns(spread), strict=True)
        ]

    def seen(self, nodes: list[Tensor], before: Tensor) -> Tensor:
        """Which of the nodes each query sees.

        Args:
            nodes: (tiles, columns) of each level.
            before: (tiles, length), see `visible`.

        Returns:
            (tiles, length, columns) bool, the levels one after the other.
        """
        seen = [
            (node[:, None] >= oldest[..., None]) & (node[:, None] < end[..., None])
            for node, (oldest, end) in zip(nodes, self.visible(before), strict=True)
        ]
        return torch.cat(seen, -1)

    def places(self, nodes: list[Tensor]) -> Tensor:
        """Where nodes stand in the table, (..., columns), one level after the other; 0 for those that don't exist."""
        found, start = [], 0
        for node, size in zip(nodes, self.sizes, strict=True):
            # Not clamped: torch 2.11's compiler for GPUs stops at indices that are limits of others.
            found.append((node + start).masked_fill((node < 0) | (node >= size), 0))
            start = start + size
        return torch.cat(found, -1)

    def table(self, count: Tensor) -> Tensor:
        """From how many tokens each segment has, (B, segments), how many each node has: (B, all nodes)."""
        levels = [count]
        for _ in range(1, self.levels):
            levels.append(pairs(levels[-1], 1).sum(2))
        return torch.cat(levels, 1)


def levels_for(limit: Limit, per_size: int, segments: int) -> int:
    """How many levels so many segments need."""
    levels, left = 1, segments
    while limit == "dyadic" and left > per_size + 1 and levels < MOST_LEVELS:
        left, levels = (left - per_size) // 2, levels + 1
    return levels


def existing_in_segments(exist: Tensor, segment: int) -> Tensor:
    """(B, T) bool to (B, segments), how many tokens of each segment exist."""
    return to_multiple(exist, 1, segment).unflatten(1, (-1, segment)).sum(-1)


def pairs(nodes: Tensor, dim: int, fill: float = 0.0) -> Tensor:
    """The nodes of a level as (..., nodes of the next level, 2, ...), what is missing being filled up.

    In a graph the next level has as many: halves of halves of an unknown length overwhelm its shape arithmetic.
    """
    if not torch.compiler.is_compiling():
        return to_multiple(nodes, dim, 2, fill).unflatten(dim, (-1, 2))
    size = nodes.shape[dim]
    index = torch.arange(2 * size, device=nodes.device)
    beyond = (index >= size).view(-1, *[1] * (nodes.dim() - dim - 1))
    return nodes.index_select(dim, index.clamp(max=size - 1)).masked_fill(beyond, fill).unflatten(dim, (size, 2))


def to_multiple(tokens: Tensor, dim: int, size: int, fill: float = 0.0) -> Tensor:
    """Filled up, with zeros (False) or what is given, until the dimension is a multiple of size."""
    missing = -tokens.shape[dim] % size
    if plain_inference(tokens) and missing == 0:
        return tokens
    return F.pad(tokens, (0, 0) * (tokens.dim() - 1 - dim) + (0, missing), value=fill)
