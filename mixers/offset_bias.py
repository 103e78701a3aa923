"""Biases by head and offset s - t, as sequences of 2 T - 1 values: what T x T biases cost, without their T x T.

Raffel et al. (2020, section 2.1) read the value of an offset from a table of buckets; ALiBi (Press et al.,
2022, equation 1) multiplies it by a slope of the head.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from remixer.mixers.precision import at_least_float32


class OffsetBias(nn.Module, abc.ABC):
    """What is added to the score of a query t and a key s that depends on the head and s - t only."""

    @abc.abstractmethod
    def forward(self, tokens: int, table: Tensor | None = None) -> Tensor:
        """The bias of all offsets that so many tokens have.

        Args:
            tokens: T.
            table: the parameter that the values are read from, where there is one; it stays where its model has it.

        Returns:
            (H, 2 T - 1), the offsets running from 1 - T to T - 1.
        """

    @abc.abstractmethod
    def reference(self, tokens: int, table: Tensor | None = None) -> Tensor:
        """`forward`, one head and offset at a time."""


class TableBias(OffsetBias):
    """factor * table[place of the head and offset], constant beyond the first and the last offset that has one.

    Args:
        places: (H, offsets) int64, where in the flattened table the value of each head and offset stands.
        first: the offset of the first place.
        factor: on the table's values.
        longest: for how many tokens there are values; longer sequences raise. None where all have them.
    """

    places: Tensor

    def __init__(self, places: Tensor, first: int, factor: float = 1.0, longest: int | None = None) -> None:
        super().__init__()
        self.register_buffer("places", places)
        self.first = first
        self.factor = factor
        self.longest = longest

    def forward(self, tokens: int, table: Tensor | None = None) -> Tensor:
        """See OffsetBias.forward.

        Raises:
            RuntimeError: the table ends before the sequence does.
        """
        assert table is not None
        if self.longest is not None:
            told = (
                f"the table of biases has values for sequences of up to {self.longest} tokens, and this one is longer"
            )
            torch._check(tokens <= self.longest, lambda: told)
        offset = torch.arange(1 - tokens, tokens, device=self.places.device)
        places = self.places[:, (offset - self.first).clamp(0, self.places.shape[1] - 1)]
        values = table.flatten()[places]
        return values if self.factor == 1.0 else values * self.factor

    def reference(self, tokens: int, table: Tensor | None = None) -> Tensor:
        """See OffsetBias.reference."""
        assert table is not None
        last, values = self.first + self.places.shape[1] - 1, table.reshape(-1)
        rows = [
            [values[row[min(max(offset, self.first), last) - self.first]] for offset in range(1 - tokens, tokens)]
            for row in self.places.tolist()
        ]
        return torch.stack([torch.stack(row) for row in rows]) * self.factor

    def extra_repr(self) -> str:
        """For torch's printout."""
        heads, offsets = self.places.shape
        ends = "" if self.longest is None else f", longest={self.longest}"
        return f"heads={heads}, offsets={self.first}..{self.first + offsets - 1}, factor={self.factor:g}{ends}"


class LinearBias(OffsetBias):
    """before[h] * (s - t) for keys before the query, after[h] * (s - t) for those after it.

    Slopes that are learned are the table, one for each head or for all: what is here is a factor on them.

    Args:
        before: (H,).
        after: (H,).
    """

    before: Tensor
    after: Tensor

    def __init__(self, before: Tensor, after: Tensor) -> None:
        super().__init__()
        self.register_buffer("before", before)
        self.register_buffer("after", after)

    def forward(self, tokens: int, table: Tensor | None = None) -> Tensor:
        """See OffsetBias.forward."""
        dtype = at_least_float32(self.before.dtype)
        offset = torch.arange(1 - tokens, tokens, device=self.before.device).to(dtype)
        before, after = self.before.to(dtype)[:, None], self.after.to(dtype)[:, None]
        if table is not None:
            learned = table.flatten()[:, None].to(at_least_float32(table.dtype))
            before, after = before * learned, after * learned
        return before * offset.clamp(max=0.0) + after * offset.clamp(min=0.0)

    def reference(self, tokens: int, table: Tensor | None = None) -> Tensor:
        """See OffsetBias.reference."""
        learned = torch.ones(()) if table is None else table.reshape(-1)
        slopes = zip(self.before, self.after, learned.expand(len(self.before)), strict=True)
        rows = [
            [(before if offset < 0 else after) * slope * offset for offset in range(1 - tokens, tokens)]
            for before, after, slope in slopes
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def extra_repr(self) -> str:
        """For torch's printout."""
        return f"heads={len(self.before)}"


def bias_at(bias: Tensor, offset: Tensor, tokens: int) -> Tensor:
    """A sequence of biases, (H, 2 T - 1), at offsets s - t of any shape: (H, *shape).

    Offsets that so many tokens don't have give some value: they are of keys that don't exist.
    """
    return bias[:, (offset + tokens - 1).clamp(0, 2 * tokens - 2)]


def existing_places(exist: Tensor) -> Tensor:
    """(B, T) bool to int64: how many keys before each token exist, up to itself."""
    return exist.long().cumsum(1)


def dense_bias(bias: Tensor, tokens: int, exist: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
    """The bias of every pair of tokens, or of some queries and every key.

    Args:
        bias: (H, 2 T - 1).
        tokens: T.
        exist: (B, T) bool, if offsets count only keys that exist.
        rows: (n,) int64, which queries; None for all.

    Returns:
        (B or 1, H, T or n, T).
    """
    if exist is None and rows is None and not torch.compiler.is_compiling():
        return bias.unfold(1, tokens, 1).flip(1)[None]  # a graph would hold the size of an unfold as a constant
    place = torch.arange(tokens, device=bias.device)[None] if exist is None else existing_places(exist)
    asking = place if rows is None else place.index_select(1, rows)
    return bias_at(bias, place[:, None] - asking[..., None], tokens).transpose(0, 1)
