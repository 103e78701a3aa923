"""A Toeplitz mixer in operators that every ONNX provider has: its transforms as matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.export.onnx.block_transform import (
    Factors,
    by_rows,
    columns_for,
    factors,
    inverse,
    product,
    rows_for,
    transform,
)
from remixer.mixers.key_weights import weighed
from remixer.mixers.precision import at_least_float32
from remixer.mixers.toeplitz_kernel import row_sums
from remixer.mixers.toeplitz_operator import ToeplitzOperator


class LoweredToeplitz(nn.Module):
    """The numbers of a Toeplitz mixer in eval mode, without an FFT.

    Args:
        mixer: is read, and its encoder, gate and key weights are shared.
        tokens: the length, where it is fixed: what depends on it alone is then computed here, once.
        most: else the greatest length, if that is known.
    """

    def __init__(self, mixer: ToeplitzOperator, tokens: int | None, most: int | None = None) -> None:
        super().__init__()
        self.spec, self.normalise, self.gates = mixer.spec, mixer.normalise, mixer.config.gate
        self.gate, self.key_weights = mixer.gate, mixer.key_weights
        self.mixer = mixer if tokens is None else None
        self.rows = rows_for(most if tokens is None else tokens)
        down, up = by_rows(self.rows, mixer.encoder.dtype)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        if tokens is None:
            return
        with torch.no_grad():
            coefficients = mixer.coefficients(tokens)
            turns = factors(columns_for(tokens, self.rows), down, up)
            self.register_buffer("across", turns.across, persistent=False)
            spectrum = _spectrum(coefficients, turns, tokens, self.spec.causal)
            self.register_buffer("spectrum", spectrum, persistent=False)
            if self.normalise:
                sums, itself = (each.transpose(1, 2) for each in row_sums(coefficients, self.spec.causal))
                self.register_buffer("sums", sums, persistent=False)
                self.register_buffer("itself", itself, persistent=False)

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """See Mixer.forward."""
        assert value is not None
        T, dtype, causal = value.shape[2], at_least_float32(value.dtype), self.spec.causal
        tokens = weighed(value, padding, key, self.key_weights)
        sums = itself = None
        if self.mixer is None:
            turns = Factors(*map(self.get_buffer, Factors._fields))
            spectrum = self.get_buffer("spectrum")
            if self.normalise:
                sums, itself = self.get_buffer("sums"), self.get_buffer("itself")
        else:
            coefficients = self.mixer.coefficients(T)
            turns = factors(columns_for(T, self.rows), self.get_buffer("down"), self.get_buffer("up"))
            spectrum = _spectrum(coefficients, turns, T, causal)
            if self.normalise:
                sums, itself = (each.transpose(1, 2) for each in row_sums(coefficients, causal))
        mixed = _times(spectrum, tokens.values.to(dtype), turns)
        if sums is not None and itself is not None:
            if tokens.weights is not None:
                sums = torch.maximum(_times(spectrum, tokens.weights.to(dtype), turns), tokens.least(itself))
            mixed = mixed / sums
        if self.gate is not None:
            operand = query if self.gates == "query" else tokens.value
            assert operand is not None
            mixed = mixed * self.gate(operand)
        return mixed.to(value.dtype)


def _times(spectrum: Tensor, values: Tensor, turns: Factors) -> Tensor:
    """The Toeplitz matrices of a spectrum times values (B, G or 1, T, E or 1): (B, H, T, E)."""
    G, T = values.shape[1:3]
    filled = F.pad(values, (0, 0, 0, turns.rows // 2 * turns.columns - T))
    of_values = transform(filled, turns)[:, :, None]  # (B, G, 1, kept, 2, columns, E)
    both = product(of_values, spectrum.unflatten(0, (G, -1))).flatten(1, 2)
    return inverse(both, turns)[:, :, :T]


def _spectrum(coefficients: Tensor, turns: Factors, tokens: int, causal: bool) -> Tensor:
    """Of coefficients (H, E or 1, offsets): (H, kept, 2, columns, E or 1)."""
    middle = 0 if causal else tokens - 1
    missing = turns.rows * turns.columns - coefficients.shape[-1]
    circular = F.pad(coefficients[..., middle:], (0, missing))  # those of keys to come stand at the end
    if not causal:
        circular = torch.cat([circular, coefficients[..., :middle]], -1)
    return transform(circular.transpose(1, 2), turns)
