"""How the coefficients of a Toeplitz matrix fade with the offset: lambda^|k| (Qin et al., 2023, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from remixer.mixers.precision import at_least_float32


class Decay(nn.Module):
    """lambda = floor + (1 - floor) sigmoid(raw), learned for every head and channel: between the floor and 1.

    It starts spread over this interval, raw being drawn from N(0, 1), as in the authors' own `use_multi_decay`.

    Args:
        floor: what lambda never falls below, in (0, 1).
        heads: H.
        channels: E, or 1 for one lambda per head.

    Examples:
        >>> fade = Decay(0.9, heads=2, channels=3)(torch.tensor([-1, 0, 2])).exp()
        >>> fade.shape, bool((fade[..., 0] > 0.9).all()), bool((fade[..., 1] == 1.0).all())
        (torch.Size([2, 3, 3]), True, True)
    """

    def __init__(self, floor: float, heads: int, channels: int) -> None:
        super().__init__()
        self.floor = floor
        self.raw = nn.Parameter(torch.randn(heads, channels))

    def log(self) -> Tensor:
        """Log lambda, (H, E or 1), in float32 at least: as 1 - (1 - floor) sigmoid(-raw), exact near 1 too."""
        raw = self.raw.to(at_least_float32(self.raw.dtype))
        return torch.log1p((self.floor - 1.0) * torch.sigmoid(-raw))

    def forward(self, offsets: Tensor) -> Tensor:
        """|k| log lambda of some offsets k, (offsets,): (H, E or 1, offsets), in float32 at least."""
        return self.log()[..., None] * offsets.abs()


def fixed_decay(decay: float | None, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """|k| log lambda for one lambda, None being 1: a logarithm, and never in bfloat16, in which 0.999 is 1.

    Args:
        decay: lambda, in (0, 1], or None.
        offsets: (offsets,), whole numbers.
        dtype: of the result.

    Returns:
        (offsets,).
    """
    return offsets.abs().to(dtype) * math.log(1.0 if decay is None else decay)
