"""Queries in tiles, and the run of keys that each tile sees (Zhu et al., 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain_inference, plain_training
from remixer.mixers.long_short.overlapping import overlapping
from remixer.mixers.workspace import workspace


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
        """All tiles in runs of at most so many, as even as possible."""
        tiles = self.count(tokens)
        run = -(-tiles // -(-tiles // most))
        for first in range(0, tiles, run):
            yield first, min(first + run, tiles)

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
        if plain_training(tokens):
            return overlapping(tokens, start, self.span, self.length, stop - first)
        run = F.pad(tokens, (0, 0, -start, end - T))
        return run.unfold(2, self.span, self.length).transpose(3, 4)

    def keys_in_cache(self, tokens: Tensor, first: int, stop: int, dtype: torch.dtype, name: str) -> Tensor:
        """`keys` at inference on a CPU, in memory that the workspace has under a name; of one head still a view."""
        B, G, T, D = tokens.shape
        if B * G == 1:
            run = workspace.take(name, (1, 1, (stop - first - 1) * self.length + self.span, D), dtype)
            _copy_run(tokens, run, first * self.length - self.before)
            return run.unfold(2, self.span, self.length).transpose(3, 4)
        out = workspace.take(name, (B, G, stop - first, self.span, D), dtype)
        lead = min(stop, max(first, -(-self.before // self.length)))
        tail = max(lead, min(stop, (T - self.after) // self.length))
        if lead < tail:
            inside = tokens[:, :, lead * self.length - self.before : tail * self.length + self.after]
            out[:, :, lead - first : tail - first] = inside.unfold(2, self.span, self.length).transpose(3, 4)
        for tile in (*range(first, lead), *range(tail, stop)):
            _copy_run(tokens, out[:, :, tile - first], tile * self.length - self.before)
        return out

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


def _copy_run(tokens: Tensor, out: Tensor, start: int) -> None:
    """Tokens from a place on, copied into (B, G, length, D); zeros where there are none."""
    lead, end = max(-start, 0), min(out.shape[2], tokens.shape[2] - start)
    out[:, :, lead:end] = tokens[:, :, start + lead : start + end]
    if lead > 0:
        out[:, :, :lead] = 0.0
    if end < out.shape[2]:
        out[:, :, end:] = 0.0
