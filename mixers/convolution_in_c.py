"""Toeplitz products at inference on a CPU by compiled code, see convolution.c."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.c_library import (
    NUMBERS,
    Compiled,
    Number,
    Pointer,
    Strides,
    by_entries,
    library,
    pointer,
    worst,
)
from remixer.mixers.eager import plain_inference, unwatched
from remixer.mixers.workspace import empty_like_tokens

# What the lengths of transforms are made of.
RADICES = (8, 4, 2, 3, 5)
TIMES_A_POWER_OF_TWO = (1, 3, 5, 9, 15)


class TransformFields(ctypes.Structure):
    """`transform` in fourier.h."""

    _fields_ = (
        *((name, Pointer) for name in ("twiddles", "radices", "places")),
        *((name, Number) for name in ("stages", "length", "bins")),
    )


class _Call(ctypes.Structure):
    """`call` in convolution.c."""

    _fields_ = (
        *((name, Pointer) for name in ("values", "out")),
        *((name, Strides) for name in ("value_strides", "out_strides")),
        *((name, Pointer) for name in ("spectrum", "scale")),
        ("transform", TransformFields),
        *((name, Number) for name in ("samples", "value_heads", "heads", "tokens")),
        *((name, Number) for name in ("value_channels", "channels", "shared", "scaled", "scales")),
        *((name, Number) for name in ("blocks", "step", "before", "first", "threads")),
    )


class Blocks(NamedTuple):
    """How a sequence that is longer than the transform is cut: block n makes the rows from n * step on.

    Attributes:
        step: how many rows.
        before: by how many tokens values begin before them.
        first: where they stand in what comes out of the transform.
    """

    step: int
    before: int
    first: int


@dataclass(frozen=True)
class Spectrum:
    """The transform of coefficients in the order in which convolution.c meets it.

    Attributes:
        weights: (H, pairs, bins, 2, 2, WIDE) for pairs of vectors of channels, or (H, length, 2) where all share it.
        length: of the transform.
        channels: how many have coefficients of their own, 1 if they are shared.
    """

    weights: Tensor
    length: int
    channels: int

    @classmethod
    def of(cls, spectrum: Tensor, length: int) -> Spectrum:
        """From what `spectrum_of` gave for a length that `length_in_c` gave, (H, E or 1, length // 2 + 1), complex."""
        transform = transform_of(length, spectrum.real.dtype)
        (H, channels, _), wide = spectrum.shape, _wide(spectrum.real.dtype)
        if channels == 1:
            whole = torch.cat([spectrum, spectrum[..., 1 : (length + 1) // 2].flip(-1).conj()], -1)
            weights = torch.view_as_real(whole[:, 0, transform.order]).contiguous()
            return cls(weights, length, 1)
        order = transform.order[transform.order <= length // 2]
        weights = spectrum.real.new_zeros(H, -(-channels // (2 * wide)), len(order), 2, 2, wide)
        for mine, theirs in zip(weights, spectrum, strict=True):  # whole, its copies would take more than the products
            pairs = torch.view_as_real(theirs[:, order]).div_(2)
            padded = torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, -channels % (2 * wide)))
            mine.permute(0, 2, 4, 1, 3).copy_(padded.unflatten(0, (-1, 2, wide)))
        return cls(weights, length, channels)

    def of_head(self, head: int) -> Spectrum:
        """That of one head alone."""
        return replace(self, weights=self.weights[head : head + 1])

    def scale_of(self, rows: Tensor) -> Tensor:
        """Factors on rows (H, E or 1, T) as `convolve_in_c` takes them: (H, T, 1 or whole pairs of vectors)."""
        missing = 0 if rows.shape[1] == 1 else -rows.shape[1] % (2 * _wide(rows.dtype))
        return torch.nn.functional.pad(rows.transpose(1, 2), (0, missing)).contiguous()


class Transform(NamedTuple):
    """A way through a transform of some length.

    Attributes:
        radices: (stages,) int64, of each stage.
        twiddles: stage by stage, (size / radix, radix - 1, 2).
        order: (length,), the frequency that ends up at each place.
        places: (bins, 2) int32, where the frequencies k and -k end up, k <= length / 2, by the place of k.
    """

    radices: Tensor
    twiddles: Tensor
    order: Tensor
    places: Tensor

    def fields(self) -> TransformFields:
        """It as the code takes it."""
        pointers = (each.data_ptr() for each in (self.twiddles, self.radices, self.places))
        return TransformFields(*pointers, len(self.radices), len(self.order), len(self.places))


def convolvable_in_c(values: Tensor, heads: int) -> bool:
    """Whether values (B, G, T, E) are convolved at inference on a CPU, and there is the code, and work for all threads.

    The code shares out whole heads, while transforms of torch share out channels.
    """
    if values.dtype not in (*NUMBERS, torch.float16) or not (plain_inference(values) and unwatched()):
        return False
    busy = values.shape[0] * heads >= torch.get_num_threads()
    return busy and all(CONVOLUTION.proven(dtype) for dtype in (torch.float32, torch.float64))


def length_in_c(least: int) -> int:
    """The least length from there on that the code has transforms for: a power of two, or one of a few times one.

    Examples:
        >>> [length_in_c(least) for least in (1, 2, 3, 7, 13, 2047, 2049, 8193)]
        [2, 2, 3, 8, 15, 2048, 2304, 9216]
    """
    return min(odd << max(2 - odd, (-(-least // odd) - 1).bit_length()) for odd in TIMES_A_POWER_OF_TWO)


def convolve_in_c(
    spectrum: Spectrum, values: Tensor, scale: Tensor | None = None, blocks: Blocks | None = None
) -> Tensor:
    """The product of a circulant matrix for each head and channel with values.

    Args:
        spectrum: of the coefficients.
        values: (B, G, T, E or 1), of their precision; query head h reads value head h // (H / G).
        scale: factors on the rows, or on half as many of the first and of the last as it has, see `Spectrum.scale_of`,
            or None.
        blocks: how sequences are cut that are longer than the transform, or None.

    Returns:
        (B, H, T, E), laid out in memory as (B, T, H, E).

    Raises:
        MemoryError: there is none left.
    """
    values = by_entries(values)
    (B, G, T, E), H = values.shape, spectrum.weights.shape[0]
    channels, cut = max(E, spectrum.channels), blocks or Blocks(T, 0, 0)
    shared = spectrum.channels == 1
    transform = transform_of(spectrum.length, values.dtype)
    out = empty_like_tokens(values, H, channels)
    call = _Call(
        *(each.data_ptr() for each in (values, out)),
        *(Strides(*each.stride()[:3]) for each in (values, out)),
        spectrum.weights.data_ptr(),
        pointer(scale),
        transform.fields(),
        *(B, G, H, T, E, channels, shared, *((0, 0) if scale is None else scale.shape[1:])),
        *(-(-T // cut.step), *cut, torch.get_num_threads()),
    )
    CONVOLUTION(values.dtype, call)
    return out


@functools.lru_cache(maxsize=16)
def transform_of(length: int, dtype: torch.dtype) -> Transform:
    """The way through a transform of a length that `length_in_c` gave, kept between calls."""
    with torch.inference_mode(False):
        radices, size = [], length
        for radix in RADICES:
            while size % radix == 0:
                radices.append(radix)
                size //= radix
        twiddles, order, size = [], torch.zeros(1, dtype=torch.long), length
        for radix in radices:
            part = torch.arange(size // radix, dtype=torch.float64)[:, None] * torch.arange(1, radix)
            angle = part * (-2 * math.pi / size)
            twiddles.append(torch.stack([angle.cos(), angle.sin()], -1).flatten().to(dtype))
            size //= radix
        for radix in reversed(radices):
            order = torch.cat([first + radix * order for first in range(radix)])
        place = torch.empty_like(order)
        place[order] = torch.arange(length)
        lower = order[order <= length // 2]
        places = torch.stack([place[lower], place[(length - lower) % length]], -1).int()
        return Transform(torch.tensor(radices), torch.cat(twiddles), order, places)


@functools.cache
def _wide(dtype: torch.dtype) -> int:
    """How many channels a vector holds."""
    made = library(CONVOLUTION.source, REAL=NUMBERS[dtype])
    assert made is not None
    return int(made.wide())


def _far_off(dtype: torch.dtype) -> float:
    """By how much the code misses torch's transforms."""
    length = 96
    coefficients, values = (
        torch.arange(rows * length, dtype=dtype).mul_(7.3).sin_().view(rows, length) for rows in (5, 3)
    )
    transformed = torch.fft.rfft(coefficients, norm="forward")[:, None]
    mixed = convolve_in_c(Spectrum.of(transformed.expand(-1, 3, -1), length), values.T.expand(1, 5, -1, -1))
    product = transformed * torch.fft.rfft(values)
    return worst([mixed[0]], [torch.fft.irfft(product, length, norm="forward").transpose(1, 2)])


CONVOLUTION = Compiled(Path(__file__).with_name("convolution.c"), "convolve", "convolution", _far_off)
