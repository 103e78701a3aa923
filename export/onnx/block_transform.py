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
from typing import NamedTuple

import torch
from torch import Tensor

# How many rows suit sequences of up to so many tokens: both products are to be of about the same size. The second's
# matrices hold 8 (2 tokens)^2 / rows bytes in float32.
SUITABLE = {8_192: 128, 32_768: 256}
MANY, ANY = 512, 256  # of longer sequences, and where it isn't known how long they will be


def rows_for(most: int | None) -> int:
    """How many rows suit sequences of so many tokens at most.

    Examples:
        >>> [rows_for(tokens) for tokens in (1, 8192, 10_000, 100_000, None)]
        [128, 128, 256, 512, 256]
    """
    return ANY if most is None else next((rows for tokens, rows in SUITABLE.items() if most <= tokens), MANY)


def columns_for(tokens: int, rows: int) -> int:
    """How many columns a sequence needs so that the product with 2 * tokens - 1 coefficients doesn't wrap around."""
    return (2 * tokens + rows - 1) // rows


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


class Spectrum(NamedTuple):
    """A transform.

    Attributes:
        real: (..., kept, columns, E).
        imaginary: (..., kept, columns, E).
    """

    real: Tensor
    imaginary: Tensor


def by_rows(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first two factors, which are the same for all lengths."""
    kept, row = torch.arange(rows // 2 + 1), torch.arange(rows)
    like = torch.empty((), dtype=dtype)
    turns = _turns(kept[:, None] * row % rows, torch.tensor([rows]), like)
    down = turns * torch.tensor([1.0, -1.0], dtype=dtype)[:, None]
    # Each row but the first and the last stands for its conjugate too.
    weight = torch.where((kept == 0) | (kept == rows // 2), 1.0, 2.0).to(dtype)[:, None, None]
    up = (down[..., : rows // 2] * weight).flatten(0, 1).transpose(0, 1) / rows
    return down, up.contiguous()


def factors(columns: int, down: Tensor, up: Tensor) -> Factors:
    """The factors for rows * columns numbers, given those that `by_rows` gives."""
    rows = down.shape[2]
    kept, column = (torch.arange(size, device=down.device) for size in (rows // 2 + 1, columns))
    number = column[-1:] + 1
    product = column[:, None] * column
    # Reduced as whole numbers, since a float32 has no digits left for the angle of a large one.
    cosine, sine = _turns(product - product // number * number, number, down).unbind(1)
    of_row = _turns(kept[:, None] * column, number * rows, down)[:, :, None]  # (kept, 2, 1, columns)
    turned_cosine, turned_sine = of_row.unbind(1)
    real = cosine * turned_cosine - sine * turned_sine  # of the sums of both angles
    imaginary = sine * turned_cosine + cosine * turned_sine
    across = torch.cat([torch.cat([real, imaginary], 2), torch.cat([-imaginary, real], 2)], 1)
    return Factors(down, up, across)


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
