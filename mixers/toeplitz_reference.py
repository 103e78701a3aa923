"""Toeplitz mixers in their slow, obvious form: a dense matrix P per head and channel, times the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.convolution import toeplitz_matrix
from remixer.mixers.key_weights import MOST
from remixer.mixers.spec import AttentionSpec


def toeplitz_mixer_reference(
    spec: AttentionSpec,
    config: Any,
    parameters: Mapping[str, Tensor],
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    padding: Tensor | None,
) -> Tensor:
    """P v, gated, of the mixer "toeplitz".

    Args:
        spec: of the attention that is replaced.
        config: a Toeplitz config.
        parameters: of the mixer, by name, in float32 at least.
        query: (B, H, T, D), where the gate reads it.
        key: (B, G, T, D), where tokens are weighed by it.
        value: (B, G, T, E).
        padding: (B, T) bool, True where a key exists, or None.

    Returns:
        (B, H, T, E).
    """
    T = value.shape[2]
    offsets = range(0 if spec.causal else 1 - T, T)
    sequence = [_coefficient(k, spec, config, parameters) for k in offsets]
    coefficients = torch.stack(sequence, -1).unflatten(0, (spec.heads, -1))
    return operator_reference(spec, config, coefficients, parameters, query, key, value, padding, config.normalise)


def operator_reference(
    spec: AttentionSpec,
    config: Any,
    coefficients: Tensor,
    parameters: Mapping[str, Tensor],
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    padding: Tensor | None,
    normalise: bool,
) -> Tensor:
    """`toeplitz_mixer_reference` for given coefficients (H, E or 1, offsets) and any OperatorConfig."""
    B, _, T, E = value.shape
    dtype = torch.promote_types(value.dtype, torch.float32)
    wide = value.repeat_interleave(spec.groups, 1).to(dtype)
    exist = torch.ones(B, T, dtype=torch.bool) if padding is None else padding
    coefficients = coefficients.to(dtype)
    P = toeplitz_matrix(coefficients, spec.causal) * exist[:, None, None, None]  # (B, H, E or 1, T, T)
    if normalise:
        itself = coefficients[..., 0 if spec.causal else T - 1][..., None]
        if config.weigh == "key" and key is not None:
            held = (key.to(dtype) * exist[:, None, :, None]).repeat_interleave(spec.groups, 1)
            maps = parameters["key_weights.weight"].to(dtype).repeat_interleave(spec.groups, 0)
            weights = torch.exp(MOST * torch.tanh(torch.einsum("bhjd,hde->bhej", held, maps) / MOST))
            P, itself = P * weights[..., None, :], itself * weights
        P = P / torch.maximum(P.sum(-1), itself)[..., None]
    mixed = torch.einsum("bheij,bhje->bhie", P.expand(-1, -1, E, -1, -1), wide * exist[:, None, :, None])
    if config.gate != "none":
        operand = query.to(dtype) if config.gate == "query" and query is not None else wide * exist[:, None, :, None]
        reads = torch.einsum("bhti,hie->bhte", operand, parameters["gate.weight"].to(dtype))
        mixed = mixed * 2.0 * torch.sigmoid(reads + parameters["gate.bias"].to(dtype))
    return mixed.to(value.dtype)


def encoder_reference(x: float, layers: int, parameters: Mapping[str, Tensor]) -> Tensor:
    """What the relative position encoder with so many hidden layers gives for one number: (out,)."""
    hidden = parameters["encoder.first.weight"][:, 0] * float(x) + parameters["encoder.first.bias"]
    for layer in [*(f"encoder.hidden.{index}" for index in range(layers)), "encoder.last"]:
        normed = hidden / (hidden.square().mean().sqrt() + 1e-8)
        hidden = parameters[f"{layer}.weight"] @ torch.where(normed > 0.0, normed, 0.0) + parameters[f"{layer}.bias"]
    return hidden


def hidden_reference(k: int, spec: AttentionSpec) -> bool:
    """Whether the window of the replaced attention hides keys at the offset k = i - j."""
    left, right = spec.window
    return (left is not None and k > left) or (right is not None and -k > right)


def _coefficient(k: int, spec: AttentionSpec, config: Any, parameters: Mapping[str, Tensor]) -> Tensor:
    """(H * E or H,), the coefficient of offset k = i - j of every head and channel."""
    encoded = encoder_reference(k, config.rpe_layers, parameters)
    if hidden_reference(k, spec):
        return encoded * 0.0
    decay: Tensor | float = 1.0 if config.decay is None else config.decay
    if config.learn_decay:
        decay = (config.decay + (1.0 - config.decay) * torch.sigmoid(parameters["decay.raw"])).flatten()
    return (encoded.exp() if config.normalise else encoded) * decay ** abs(k)
