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
        """All tiles in runs of at most so many; where several are needed, those at the ends by themselves.

        Only at the ends must keys be filled up, hence copied.
        """
        tiles = self.count(tokens)
        lead = min(tiles, -(-self.before // self.length))
        tail = max(lead, (tokens - self.after) // self.length)
        parts = [(0, lead), (lead, tail), (tail, tiles)] if tiles > most else [(0, tiles)]
        for start, end in parts:
            for first in range(start, end, most):
                yield first, min(first + most, end)

    def queries(self, tokens: Tensor, first: int, stop: int) -> Tensor:
        """(B, H, T, D) to (B * tiles, H, length, D)."""
        if plain_inference(tokens) and stop * self.length <= tokens.shape[2]:
            run = tokens[:, :, first * self.length : stop * self.length]  # a view, where padding would copy
        else:
            run = F.pad(tokens, (0, 0, -first * self.length, stop * self.length - tokens.shape[2]))
        return run.unflatten(2, (stop - first, self.length)).transpose(1, 2).flatten(0, 1)

    def keys(self, tokens: Tensor, first: int, stop: int) -> Tensor:
        """(B, G, T, D) to (B, tiles, G, span, D), a view of overlapping tiles."""
        T, start, end = tokens.shape[2], first * self.length - self.before, stop * self.length + self.after
        if not plain_inference(tokens):
            run = F.pad(tokens, (0, 0, -start, end - T))
        elif start >= 0 and end <= T:
            run = tokens[:, :, start:end]
        else:  # like F.pad, which would write everything twice
            run = tokens.new_empty(*tokens.shape[:2], end - start, tokens.shape[3])
            lead, tail = max(-start, 0), min(T, end) - start
            run[:, :, :lead] = 0.0
            run[:, :, tail:] = 0.0
            run[:, :, lead:tail] = tokens[:, :, max(start, 0) : end]
        return run.unfold(2, self.span, self.length).permute(0, 2, 1, 4, 3)

    def exist(self, padding: Tensor, first: int, stop: int) -> Tensor:
        """(B, T) bool to (B, tiles, span): which keys of a tile are there."""
        around = (self.before - first * self.length, stop * self.length + self.after - padding.shape[1])
        return F.pad(padding, around, value=False).unfold(1, self.span, self.length)

    def untiled(self, mixed: Tensor, like: Tensor) -> Tensor:
        """(B * tiles, H, length, E), all tiles of the sequences, back to (B, H, T, E); like is (B, H, T, D)."""
        B, _, T, _ = like.shape
        whole = mixed.unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)
        if torch.compiler.is_compiling():
            # Whether a slice is contiguous would become a guard on the length.
            return whole.index_select(2, torch.arange(T, device=mixed.device))
        return whole[:, :, :T]

    def positions(self, first: int, stop: int, device: torch.device) -> Tensor:
        """(tiles, length), the place of every query in the sequence."""
        tiles = torch.arange(first, stop, device=device)
        return tiles[:, None] * self.length + torch.arange(self.length, device=device)

    def ahead(self, device: torch.device) -> Tensor:
        """(length, span), by how many tokens a key precedes a query: the same in every tile."""
        query = torch.arange(self.length, device=device)[:, None]
        return query + self.before - torch.arange(self.span, device=device)
