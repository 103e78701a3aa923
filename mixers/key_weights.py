"""What each key weighs by what it holds (Zhai et al., 2021, "An Attention Free Transformer", equation 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from remixer.mixers.precision import at_least_float32, unrounded

# The logarithm of a weight stays below. A transform's rounding errors go with the largest weights, also in rows that
# see none of these.
MOST = 4.0


class KeyWeights(nn.Module):
    """w = exp(4 tanh(k u / 4)) per key head: 1 for every key at the start. A factor on them all would change nothing.

    Args:
        heads: G.
        read: D, the size of a key.
        weighed: how many weights a key has in each head: E, or 1.
    """

    def __init__(self, heads: int, read: int, weighed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, read, weighed))

    def forward(self, key: Tensor) -> Tensor:
        """(B, G, S, D) to (B, G, S, E or 1), in float32 at least."""
        dtype = at_least_float32(key.dtype)
        with unrounded(key.device):
            score = key.to(dtype) @ self.weight.to(dtype)
        return torch.exp(MOST * torch.tanh(score / MOST))


class Weighed(NamedTuple):
    """Tokens as they enter a product whose rows may be divided by their sums.

    Attributes:
        value: (B, G, T, E), 0 where there is no token.
        values: the same times the weights.
        weights: (B, G or 1, T, E or 1), 0 where there is no token, and bool where all others are 1; None where all are.
        own: (B, G, T, E or 1), what each query's own key weighs or would weigh, never 0; None where all are 1.
    """

    value: Tensor
    values: Tensor
    weights: Tensor | None
    own: Tensor | None

    def counted(self) -> Tensor:
        """The weights as numbers, (B, G or 1, T, E or 1)."""
        if self.weights is None:
            return self.value.new_ones(self.value.shape[0], 1, self.value.shape[2], 1)
        return self.weights.to(self.values.dtype)

    def least(self, itself: Tensor) -> Tensor:
        """What the row of a query that exists sums up to at least: what its own key gets.

        Args:
            itself: the coefficient of offset 0, (H, 1, E or 1).

        Returns:
            Broadcastable to (B, H, T, E).
        """
        if self.own is None:
            return itself
        return (self.own[:, :, None] * itself.unflatten(0, (self.own.shape[1], -1))).flatten(1, 2)


def weighed(value: Tensor, padding: Tensor | None, key: Tensor | None, key_weights: KeyWeights | None) -> Weighed:
    """Values (B, G, T, E) times what keys (B, G, T, D) weigh, those of tokens that don't exist (B, T) left out."""
    gone = None if padding is None else ~padding[:, None, :, None]
    value = value if gone is None else value.masked_fill(gone, 0.0)
    if key_weights is None:
        return Weighed(value, value, None if gone is None else ~gone, None)
    assert key is not None
    own = key_weights(key if gone is None else key.masked_fill(gone, 0.0))
    return Weighed(value, own * value, own if gone is None else own.masked_fill(gone, 0.0), own)
