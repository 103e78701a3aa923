"""Queries in tiles, and the run of keys that each tile sees (Zhu et al., 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain_inference


@dataclass(frozen=True)
class Tiling:
    """Tile i holds the queries from i * length on; its keys reach `before` and `after` tokens beyond them.

    All methods take tiles first..stop-1 of a sequence of T tokens. What lies outside of the sequence is zero.
    """

    length: int
    before: int
    after: int

    @property
    def span(self) -> int:
        """How many keys a tile sees."""
        return self.before + self.length + self.after

    def count(self, tokens: int) -> int:
        """How many tiles hold so many queries."""
        return -(-tokens // self.length)

    def runs(self, tokens: int, most: int) -> Iterator[tuple[int, int]]:
        """All tiles in runs of at most so many."""
        tiles = self.count(tokens)
        for first in range(0, tiles, most):
            yield first, min(first + most, tiles)

    def queries(self, tokens: Tensor, groups: int, first: int, stop: int) -> Tensor:
        """(B, H, T, D) to (B, G, tiles, groups, length, D)."""
        if plain_inference(tokens) and stop * self.length <= tokens.shape[2]:
            run = tokens[:, :, first * self.length : stop * self.length]  # a view, where padding would copy
        else:
            run = F.pad(tokens, (0, 0, -first * self.length, stop * self.length - tokens.shape[2]))
        return run.unflatten(2, (stop - first, self.length)).unflatten(1, (-1, groups)).transpose(2, 3)

    def keys(self, tokens: Tensor, first: int, stop: int) -> Tensor:
        """(B, G, T, D) to (B, G, tiles, span, D), a view of overlapping tiles."""
        T, start, end = tokens.shape[2], first * self.length - self.before, stop * self.length + self.after
        if plain_inference(tokens) and start >= 0 and end <= T:
            run = tokens[:, :, start:end]
        else:
            run = F.pad(tokens, (0, 0, -start, end - T))
        return run.unfold(2, self.span, self.length).transpose(3, 4)

    def write_keys(self, tokens: Tensor, first: int, stop: int, out: Tensor) -> None:
        """`keys` written into (B, G, tiles, span, D), with nothing copied twice."""
        T = tokens.shape[2]
        lead = min(stop, max(first, -(-self.before // self.length)))
        tail = max(lead, min(stop, (T - self.after) // self.length))
        if lead < tail:
            out[:, :, lead - first : tail - first] = self.keys(tokens, lead, tail)
        for tile in (*range(first, lead), *range(tail, stop)):
            start = tile * self.length - self.before
            lead, end = max(-start, 0), min(self.span, T - start)
            one = out[:, :, tile - first]
            one[:, :, lead:end] = tokens[:, :, start + lead : start + end]
            if lead > 0:
                one[:, :, :lead] = 0.0
            if end < self.span:
                one[:, :, end:] = 0.0

    def exist(self, padding: Tensor, first: int, stop: int) -> Tensor:
        """(B, T) bool to (B, tiles, span): which keys of a tile are there."""
        around = (self.before - first * self.length, stop * self.length + self.after - padding.shape[1])
        return F.pad(padding, around, value=False).unfold(1, self.span, self.length)

    def untiled(self, mixed: Tensor, tokens: int) -> Tensor:
        """(B, G, tiles, groups, length, E), all tiles of the sequences, back to (B, H, T, E)."""
        whole = mixed.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if torch.compiler.is_compiling():
            # Whether a slice is contiguous would become a guard on the length.
            return whole.index_select(2, torch.arange(tokens, device=mixed.device))
        return whole[:, :, :tokens]

    def positions(self, first: int, stop: int, device: torch.device) -> Tensor:
        """(tiles, length), the place of every query in the sequence."""
        tiles = torch.arange(first, stop, device=device)
        return tiles[:, None] * self.length + torch.arange(self.length, device=device)

    def ahead(self, device: torch.device) -> Tensor:
        """(length, span), by how many tokens a key precedes a query: the same in every tile."""
        query = torch.arange(self.length, device=device)[:, None]
        return query + self.before - torch.arange(self.span, device=device)
