"""What a Toeplitz mixer multiplies values with: the transform of its coefficients, or for short sequences a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.convolution import convolve, spectrum_of, toeplitz_matrix, transform_length


@dataclass(frozen=True)
class Kernel:
    """One of two forms of the same operator.

    Attributes:
        weights: the transform of the coefficients, (H, E or 1, length // 2 + 1), complex, or matrices (H, T, T).
        length: of the transform, None for matrices.
        scale: 1 / the sum of every row over all keys (H, E or 1, T), where rows are normalised.
        itself: what every query gives itself (H, 1, E or 1), where rows are normalised.
    """

    weights: Tensor
    length: int | None
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
        values = values.to(self.weights.real.dtype)
        if self.length is not None:
            return convolve(self.weights, values, self.length, scale)
        mixed = (self.weights.unflatten(0, (values.shape[1], -1)) @ values[:, :, None]).flatten(1, 2)
        return mixed if scale is None else mixed * scale.transpose(1, 2)


def kernel_of(coefficients: Tensor, causal: bool, normalise: bool, direct: bool) -> Kernel:
    """The kernel with these coefficients, in their precision.

    Args:
        coefficients: (H, E or 1, offsets); (H, 1, offsets) for matrices.
        causal: the offsets are 0..T-1, else -(T-1)..T-1.
        normalise: rows will be divided by their sums.
        direct: as matrices.
    """
    T = coefficients.shape[-1] if causal else (coefficients.shape[-1] + 1) // 2
    length = None if direct else transform_length(T)
    if length is None:
        weights = toeplitz_matrix(coefficients, causal)[:, 0].contiguous()
    else:
        weights = spectrum_of(coefficients, length, causal)
    if not normalise:
        return Kernel(weights, length)
    middle = 0 if causal else T - 1
    sums = coefficients[..., middle:].cumsum(-1)
    if not causal:
        sums = sums + F.pad(coefficients[..., :middle].flip(-1).cumsum(-1).flip(-1), (0, 1))
    tiny = torch.finfo(coefficients.dtype).tiny
    # A slice: torch.compile would make a graph of its own for every index.
    itself = coefficients[..., middle : middle + 1].clamp(min=tiny).transpose(1, 2)
    return Kernel(weights, length, sums.clamp(min=tiny).reciprocal(), itself)
