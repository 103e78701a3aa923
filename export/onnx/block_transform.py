"""Fourier transforms of real sequences as matrix products: what every ONNX provider runs, and runs fast.

A sequence of N = rows * columns numbers, filled row by row, is transformed by its columns, turned by a twiddle factor,
and transformed by its rows (Bailey, 1990, "FFTs in external or hierarchical memory", the four-step method). Of a real
sequence half of the first transform's rows say all: the others are their conjugates. N needs to be no power of two.
The twiddle factors are part of the second transform's matrices, one for each row: elementwise they would be seven more
passes over memory.

Sequences are (..., N, E): E of them side by side. Their transform is a pair of (..., kept, columns, E), real and
imaginary parts of frequency f + rows * c at [f, c], f = 0..rows / 2.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST = 64  # rows
STEPS = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)  # for more tokens than each of them there are twice as many


def sizes_for(tokens: int) -> tuple[int, int]:
    """Rows and columns for twice as many numbers as tokens, so that products with coefficients don't wrap around.

    There are about twice the square root of that many rows: both products are then of about the same size, and the
    second's matrices hold 8 (2 tokens)^2 / rows bytes in float32. In a graph, which computes them from the number of
    tokens, both are whole numbers that nothing else is known of.

    Examples:
        >>> [sizes_for(tokens) for tokens in (1, 1024, 1025, 10_000, 100_000)]
        [(64, 1), (64, 32), (128, 17), (256, 79), (1024, 196)]
    """
    number = torch.scalar_tensor(tokens, dtype=torch.int64)
    half: Any = LEAST // 2
    for place, step in enumerate(STEPS):
        half = half + (number > step) * (LEAST // 2 << place)
    rows, columns = 2 * half.item(), ((number + half - 1) // half).item()
    torch._check(rows >= LEAST)
    torch._check(columns >= 1)
    torch._check(rows // 2 * columns >= tokens)
    return rows, columns


class Factors(NamedTuple):
    """Everything that transforms of one length share.

    Attributes:
        down: (rows / 2 + 1, 2, rows), real and imaginary part of what the first transform multiplies rows with.
        up: (rows / 2, rows + 2), the way back.
        across: (rows / 2 + 1, 2 * columns, 2 * columns), [[cosines, sines], [-sines, cosines]] of the second transform,
            those of each row turned by its twiddle factors.
    """

    down: Tensor
    up: Tensor
    across: Tensor

    @property
    def rows(self) -> int:
        """How many rows a sequence has."""
        return self.down.shape[2]

    @property
    def columns(self) -> int:
        """How many columns a sequence has."""
        return self.across.shape[2] // 2

    @property
    def half(self) -> int:
        """How many numbers half of a sequence has: tokens, and what they are filled up with."""
        return self.rows // 2 * self.columns


class Spectrum(NamedTuple):
    """A transform.

    Attributes:
        real: (..., kept, columns, E).
        imaginary: (..., kept, columns, E).
    """

    real: Tensor
    imaginary: Tensor


def by_rows(rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The first two factors."""
    kept, row = (torch.arange(size, device=like.device) for size in (rows // 2 + 1, rows))
    number = row[-1:] + 1
    turns = _turns(_remainder(kept[:, None] * row, number), number, like)
    down = turns * torch.tensor([1.0, -1.0], dtype=like.dtype, device=like.device)[:, None]
    # Each row but the first and the last stands for its conjugate too.
    ends = (kept == 0) | (kept == kept[-1:])
    weight = torch.where(ends, 1.0, 2.0).to(like.dtype)[:, None, None]
    up = (down[..., : rows // 2] * weight).flatten(0, 1).transpose(0, 1) / number
    return down, up.contiguous()


def factors(tokens: int, like: Tensor) -> Factors:
    """The factors for sequences of twice as many numbers, of a dtype and on a device."""
    rows, columns = sizes_for(tokens)
    down, up = by_rows(rows, like)
    kept, column = (torch.arange(size, device=like.device) for size in (rows // 2 + 1, columns))
    number = column[-1:] + 1
    # Reduced as whole numbers, since a float32 has no digits left for the angle of a large one.
    cosine, sine = _turns(_remainder(column[:, None] * column, number), number, down).unbind(1)
    of_row = _turns(kept[:, None] * column, number * 2 * kept[-1:], down)[:, :, None]  # (kept, 2, 1, columns)
    turned_cosine, turned_sine = of_row.unbind(1)
    real = cosine * turned_cosine - sine * turned_sine  # of the sums of both angles
    imaginary = sine * turned_cosine + cosine * turned_sine
    across = torch.cat([torch.cat([real, imaginary], 2), torch.cat([-imaginary, real], 2)], 1)
    return Factors(down, up, across)


def _remainder(product: Tensor, number: Tensor) -> Tensor:
    return product - product // number * number


def _turns(part: Tensor, whole: Tensor, like: Tensor) -> Tensor:
    """Cosine and sine of part / whole of a turn: (n, m) to (n, 2, m)."""
    angle = part.to(like.dtype) * (2 * math.pi) / whole.to(like.dtype)
    return torch.stack([angle.cos(), angle.sin()], 1)


def transform(sequences: Tensor, factors: Factors) -> Spectrum:
    """Of (..., rows to use * columns, E), the rows from there on being zero."""
    columns, E = factors.columns, sequences.shape[-1]
    by_row = sequences.unflatten(-2, (-1, columns)).flatten(-2)
    down = factors.down[..., : by_row.shape[-2]].flatten(0, 1)
    first = (down @ by_row).unflatten(-2, (-1, 2)).unflatten(-1, (columns, E)).flatten(-3, -2)
    # Two products, where splitting one would copy it.
    return Spectrum(factors.across[:, :columns] @ first, factors.across[:, columns:] @ first)


def product(left: Spectrum, right: Spectrum) -> Spectrum:
    """The complex product of two transforms, broadcast."""
    (a, b), (c, d) = left, right
    return Spectrum(a * c - b * d, a * d + b * c)


def inverse(spectrum: Spectrum, factors: Factors) -> Tensor:
    """The first half of each sequence, (..., rows / 2 * columns, E)."""
    columns, E = factors.columns, spectrum.real.shape[-1]
    # In an order that onnxruntime doesn't fuse with the product: its kernel for both takes three times as long.
    by_part = factors.across.unflatten(2, (2, columns)).unflatten(1, (2, columns))
    back = by_part.permute(0, 3, 4, 1, 2).flatten(3, 4).flatten(1, 2) / columns
    turned = (back @ torch.cat(spectrum, -2)).unflatten(-2, (2, columns))
    by_row = turned.flatten(-4, -3).flatten(-2)
    return (factors.up @ by_row).unflatten(-1, (columns, E)).flatten(-3, -2)
