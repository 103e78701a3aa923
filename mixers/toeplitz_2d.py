"""Toeplitz mixing over the two axes of an image (the code of Qin et al., 2023, for Long Range Arena)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remixer.mixers.convolution import toeplitz_matrix
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz import Toeplitz, ToeplitzMixer


class Toeplitz2d(nn.Module):
    """T_2 T_1 v: T_1 along every row of an image, then T_2 along every column, for each head and channel.

    The mixing matrix over all pixels is the Kronecker product of T_2 and T_1: pixel (k, l) reaches pixel (i, j)
    with t2_{i-k} t1_{j-l}. The published code computes T_2 (T_1 v) + T_1 (T_2 v). Maps of different axes commute,
    so that this is 2 T_2 T_1 v at twice the work: the factor 2 is the only difference. Images may have any height
    and width.

    Args:
        heads: H.
        channels: E, per head.
        decay: lambda in lambda^|i-k| lambda^|j-l|, or None for no decay.
        rpe_width: hidden size of the relative position encoders, one per axis.
        rpe_layers: number of their hidden layers.

    Raises:
        MixerConfigError: an option has a value that no Toeplitz matrix could take.

    Examples:
        >>> operator = Toeplitz2d(heads=2, channels=8)
        >>> operator(torch.zeros(1, 2, 5, 7, 8)).shape
        torch.Size([1, 2, 5, 7, 8])
    """

    def __init__(
        self, heads: int, channels: int, *, decay: float | None = 0.99, rpe_width: int = 32, rpe_layers: int = 1
    ) -> None:
        super().__init__()
        spec = AttentionSpec(heads=heads, kv_heads=heads, head_dim=channels, value_dim=channels, scale=1.0)
        config = Toeplitz(decay=decay, rpe_width=rpe_width, rpe_layers=rpe_layers, normalise=False)
        self.along_rows = ToeplitzMixer(spec, config)
        self.along_columns = ToeplitzMixer(spec, config)

    def forward(self, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """Mix the pixels.

        Args:
            value: (B, H, height, width, E).
            padding: (B, height, width) bool, True where a pixel exists, or None where all do.

        Returns:
            (B, H, height, width, E) in the dtype of value.
        """
        B, dtype = value.shape[0], value.dtype
        # What lies between the axes is not rounded to the values' dtype.
        wide = existing(value, padding).to(at_least_float32(dtype))
        rows = wide.transpose(1, 2).flatten(0, 1)  # (B * height, H, width, E)
        columns = self.along_rows(value=rows).unflatten(0, (B, -1)).permute(0, 3, 2, 1, 4)
        mixed = self.along_columns(value=columns.flatten(0, 1)).unflatten(0, (B, -1))
        return mixed.permute(0, 2, 3, 1, 4).to(dtype)

    def reference(self, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """`forward` by one dense matrix over all pixels: the same arguments, values and gradients."""
        height, width, dtype = *value.shape[2:4], value.dtype
        wide = existing(value, padding).to(at_least_float32(dtype))
        first, second = (
            toeplitz_matrix(mixer.coefficients(size).to(wide.dtype), causal=False)
            for mixer, size in ((self.along_rows, width), (self.along_columns, height))
        )
        matrix = torch.einsum("heik,hejl->heijkl", second, first)
        return torch.einsum("heijkl,bhkle->bhije", matrix, wide).to(dtype)


def existing(value: Tensor, padding: Tensor | None) -> Tensor:
    """Zero for pixels that don't exist, which is exact: the operator is linear, its rows aren't normalised.

    Args:
        value: (B, H, height, width, E).
        padding: (B, height, width) bool, or None.

    Returns:
        (B, H, height, width, E).
    """
    return value if padding is None else value.masked_fill(~padding[:, None, ..., None], 0.0)
