"""The frequency-domain Toeplitz mixer in its slow, obvious form: transforms as sums, and a dense matrix P."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz_reference import encoder_reference, hidden_reference, operator_reference


def frequency_mixer_reference(
    spec: AttentionSpec,
    config: Any,
    parameters: Mapping[str, Tensor],
    query: Tensor | None,
    value: Tensor,
    padding: Tensor | None,
) -> Tensor:
    """P v, gated, of the mixer "frequency_toeplitz"; see `toeplitz_mixer_reference`."""
    T = value.shape[2]
    encoded = [encoder_reference(math.pi * k / T, config.rpe_layers, parameters) for k in range(T + 1)]
    offsets = range(0 if spec.causal else 1 - T, T)
    sequence = [_coefficient(offset, encoded, spec) for offset in offsets]
    coefficients = torch.stack(sequence, -1).unflatten(0, (spec.heads, -1))
    return operator_reference(spec, config, coefficients, parameters, query, None, value, padding, False)


def _coefficient(offset: int, encoded: list[Tensor], spec: AttentionSpec) -> Tensor:
    """The inverse transform at one offset, (H * E or H,).

    Args:
        offset: i - j.
        encoded: what the encoder gives at the frequencies pi k / T, k = 0..T.
        spec: of the attention that is replaced.
    """
    T = len(encoded) - 1
    total = torch.zeros_like(encoded[0])
    for k in range(T + 1):
        twice = 1.0 if k in (0, T) else 2.0  # for the negative frequencies
        angle = math.pi * k * offset / T
        if spec.causal:  # an even sequence, folded: offset 0 has no other half
            total = total + encoded[k] * twice * math.cos(angle) * (1.0 if offset == 0 else 2.0)
        else:
            real, imaginary = encoded[k].chunk(2)
            part = real * math.cos(angle) - (0.0 if k in (0, T) else 1.0) * imaginary * math.sin(angle)
            total = total + twice * torch.cat([part, part])
    total = total if spec.causal else total.chunk(2)[0]
    return total * 0.0 if hidden_reference(offset, spec) else total / (2 * T)
