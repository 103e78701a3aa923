"""What a Toeplitz mixer multiplies values with, in the form that is fastest where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.convolution import convolve, spectrum_of, toeplitz_matrix, tokens_of, transform_length
from remixer.mixers.convolution_in_c import Spectrum, convolve_in_c, length_in_c
from remixer.mixers.toeplitz_gradients import product_in_training

Form = Literal["matrix", "spectrum", "coefficients", "compiled"]


@dataclass(frozen=True)
class Kernel:
    """One of three forms of the same operator: matrices for short sequences, coefficients for training.

    Attributes:
        form: what the weights are.
        weights: matrices (H, T, T), the coefficients (H, E or 1, offsets), or their transform (H, E or 1,
            length // 2 + 1), complex.
        length: of the transform.
        causal: whether the offsets are 0..T-1.
        scale: 1 / the sum of every row over all keys (H, E or 1, T), where rows are normalised.
        itself: what every query gives itself (H, 1, E or 1), where rows are normalised.
    """

    form: Form
    weights: Tensor
    length: int
    causal: bool
    scale: Tensor | None = None
    itself: Tensor | None = None

    def times(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """The product in this kernel's precision.

        Args:
            values: (B, G or 1, T, E or 1).
            scale: (H, E or 1, T), factor on the rows, or None.

        Returns:
            (B, H, T, E or 1).
        """
        if self.form == "spectrum":
            return convolve(self.weights, values, self.length, scale)
        values = values.to(self.weights.dtype)
        if self.form == "coefficients":
            mixed = product_in_training(self.weights, values, self.causal)
        else:
            mixed = (self.weights.unflatten(0, (values.shape[1], -1)) @ values[:, :, None]).flatten(1, 2)
        return mixed if scale is None else mixed * scale.transpose(1, 2)


@dataclass(frozen=True)
class CompiledKernel:
    """The same operator for compiled code on a CPU.

    Attributes:
        spectrum: of the coefficients.
        scale: 1 / the sum of every row over all keys, see `Spectrum.scale_of`, where rows are normalised.
        itself: see Kernel.
    """

    form: ClassVar[Form] = "compiled"
    spectrum: Spectrum
    scale: Tensor | None = None
    itself: Tensor | None = None

    def times(self, values: Tensor, scale: Tensor | None = None) -> Tensor:
        """See `Kernel.times`; the scale is that of this kernel, or None."""
        return convolve_in_c(self.spectrum, values.to(self.spectrum.weights.dtype), scale)


def kernel_of(coefficients: Tensor, causal: bool, normalise: bool, form: Form) -> Kernel | CompiledKernel:
    """The kernel with these coefficients, in their precision.

    Args:
        coefficients: (H, E or 1, offsets); (H, 1, offsets) for matrices.
        causal: the offsets are 0..T-1, else -(T-1)..T-1.
        normalise: rows will be divided by their sums.
        form: see Kernel; "compiled" gives a CompiledKernel.
    """
    if form == "compiled":
        length = length_in_c(max(2, 2 * tokens_of(coefficients, causal) - 1))
        spectrum = Spectrum.of(spectrum_of(coefficients, length, causal), length)
        if not normalise:
            return CompiledKernel(spectrum)
        sums, itself = row_sums(coefficients, causal)
        return CompiledKernel(spectrum, spectrum.scale_of(sums.reciprocal()), itself.transpose(1, 2))
    length = transform_length(tokens_of(coefficients, causal))
    weights = coefficients
    if form == "matrix":
        weights = toeplitz_matrix(coefficients, causal)[:, 0].contiguous()
    elif form == "spectrum":
        weights = spectrum_of(coefficients, length, causal)
    if not normalise:
        return Kernel(form, weights, length, causal)
    sums, itself = row_sums(coefficients, causal)
    return Kernel(form, weights, length, causal, sums.reciprocal(), itself.transpose(1, 2))


def row_sums(coefficients: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The sum of each row over all keys (H, E or 1, T), and what each query gives itself (H, E or 1, 1), never 0.

    Args:
        coefficients: (H, E or 1, offsets), positive.
        causal: the offsets are 0..T-1, else -(T-1)..T-1.
    """
    middle = 0 if causal else tokens_of(coefficients, causal) - 1
    sums = coefficients[..., middle:].cumsum(-1)
    if not causal:
        sums = sums + F.pad(coefficients[..., :middle].flip(-1).cumsum(-1).flip(-1), (0, 1))
    tiny = torch.finfo(coefficients.dtype).tiny
    # A slice: torch.compile would make a graph of its own for every index.
    return sums.clamp(min=tiny), coefficients[..., middle : middle + 1].clamp(min=tiny)
