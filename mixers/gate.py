"""A gate on what a mixer gives, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remixer.mixers.precision import at_least_float32


class Gate(nn.Module):
    """2 sigmoid(x W + b) per head: 1 everywhere at the start, between 0 and 2 afterwards."""

    def __init__(self, heads: int, read: int, gated: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, read, gated))
        self.bias = nn.Parameter(torch.zeros(heads, 1, gated))

    def forward(self, operand: Tensor) -> Tensor:
        """(B, H or G, T, read) to (B, H, T, gated), in float32 at least."""
        groups, dtype = self.weight.shape[0] // operand.shape[1], at_least_float32(operand.dtype)
        weight, bias = (each.to(dtype).unflatten(0, (-1, groups)) for each in (self.weight, self.bias))
        return 2.0 * torch.sigmoid(operand.to(dtype)[:, :, None] @ weight + bias).flatten(1, 2)
