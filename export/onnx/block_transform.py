"""Fourier transforms of real sequences as matrix products: what every ONNX provider runs, and runs fast.

A sequence of N = rows * columns numbers, filled row by row, is transformed by its columns, turned by a twiddle factor,
and transformed by its rows (Bailey, 1990, "FFTs in external or hierarchical memory", the four-step method). Of a real
sequence half of the first transform's rows say all: the others are their conjugates. N needs to be no power of two.

Sequences are (..., N, E): E of them side by side. Their transform is (..., kept, 2, columns, E), real and imaginary
parts of frequency f + rows * c at [f, :, c], f = 0..rows / 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 128


def columns_for(tokens: int) -> int:
    """How many columns a sequence needs so that the product with 2 * tokens - 1 coefficients doesn't wrap around."""
    return (2 * tokens + ROWS - 1) // ROWS


class Factors(NamedTuple):
    """Everything that transforms of one length share.

    Attributes:
        down: (rows / 2 + 1, 2, rows), real and imaginary part of what the first transform multiplies rows with.
        up: (rows / 2, rows + 2), the way back.
        twiddle: (rows / 2 + 1, 2, columns), cosines and sines.
        across: (2 * columns, 2 * columns), [[cosines, sines], [-sines, cosines]] of the second transform.
    """

    down: Tensor
    up: Tensor
    twiddle: Tensor
    across: Tensor

    @property
    def columns(self) -> int:
        """How many columns a sequence has."""
        return self.twiddle.shape[2]


def by_rows(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first two factors, which are the same for all lengths."""
    kept, row = torch.arange(ROWS // 2 + 1), torch.arange(ROWS)
    like = torch.empty((), dtype=dtype)
    down = (
        _turns(kept[:, None] * row % ROWS, torch.tensor([ROWS]), like) * torch.tensor([1.0, -1.0], dtype=dtype)[:, None]
    )
    # Each row but the first and the last stands for its conjugate too.
    weight = torch.where((kept == 0) | (kept == ROWS // 2), 1.0, 2.0).to(dtype)[:, None, None]
    up = (down[..., : ROWS // 2] * weight).flatten(0, 1).transpose(0, 1) / ROWS
    return down, up.contiguous()


def factors(columns: int, down: Tensor, up: Tensor) -> Factors:
    """The factors for rows * columns numbers, given those that `by_rows` gives."""
    kept, column = (torch.arange(size, device=down.device) for size in (ROWS // 2 + 1, columns))
    number = column[-1:] + 1
    twiddle = _turns(kept[:, None] * column, number * ROWS, down)
    product = column[:, None] * column
    # Reduced as whole numbers, since a float32 has no digits left for the angle of a large one.
    cosine, sine = _turns(product - product // number * number, number, down).unbind(1)
    across = torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)])
    return Factors(down, up, twiddle, across)


def _turns(part: Tensor, whole: Tensor, like: Tensor) -> Tensor:
    """Cosine and sine of part / whole of a turn: (n, m) to (n, 2, m)."""
    angle = part.to(like.dtype) * (2 * math.pi) / whole.to(like.dtype)
    return torch.stack([angle.cos(), angle.sin()], 1)


def transform(sequences: Tensor, factors: Factors) -> Tensor:
    """Of (..., rows to use * columns, E), the rows from there on being zero: (..., kept, 2, columns, E)."""
    columns, E = factors.columns, sequences.shape[-1]
    by_row = sequences.unflatten(-2, (-1, columns)).flatten(-2)
    down = factors.down[..., : by_row.shape[-2]].flatten(0, 1)
    first = (down @ by_row).unflatten(-2, (-1, 2)).unflatten(-1, (columns, E))
    cosine, sine = (each[..., None] for each in factors.twiddle.unbind(1))
    real, imaginary = first.unbind(-3)
    turned = torch.cat([real * cosine + imaginary * sine, imaginary * cosine - real * sine], -2)
    return (factors.across @ turned).unflatten(-2, (2, columns))


def product(left: Tensor, right: Tensor) -> Tensor:
    """The complex product of two transforms; either may have E = 1."""
    (a, b), (c, d) = left.unbind(-3), right.unbind(-3)
    return torch.stack([a * c - b * d, a * d + b * c], -3)


def inverse(spectrum: Tensor, factors: Factors) -> Tensor:
    """The first half of each sequence, (..., rows / 2 * columns, E), of (..., kept, 2, columns, E)."""
    columns, E = factors.columns, spectrum.shape[-1]
    back = (factors.across.transpose(0, 1) @ spectrum.flatten(-3, -2)).unflatten(-2, (2, columns))
    cosine, sine = (each[..., None] for each in factors.twiddle.unbind(1))
    real, imaginary = back.unbind(-3)
    turned = torch.stack([real * cosine - imaginary * sine, imaginary * cosine + real * sine], -3)
    return (factors.up @ turned.flatten(-4, -3).flatten(-2)).unflatten(-1, (columns, E)).flatten(-3, -2) / columns
