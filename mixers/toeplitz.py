"""Toeplitz token mixing (Qin et al., 2023, "Toeplitz Neural Network for Sequence Modeling", section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers.base import Mixer, MixerConfig, Order, Unsupported
from remixer.mixers.convolution import convolve, spectrum_of, transform_dtype, transform_length
from remixer.mixers.eager import plain_inference
from remixer.mixers.position_encoder import PositionEncoder
from remixer.mixers.precision import at_least_float32
from remixer.mixers.recent import Recent
from remixer.mixers.registry import register
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz_reference import toeplitz_mixer_reference


@dataclass(frozen=True)
class Toeplitz(MixerConfig):
    """Replace an attention by a convolution over relative positions: P_ij = t_{i-j}, whatever the tokens say.

    Attributes:
        decay: lambda in lambda^|i-j|, or None for no decay. Offset 0 is never decayed.
        rpe_width: hidden size of the relative position encoder, which gives the coefficients.
        rpe_layers: number of its hidden layers.
        gate: what the output is gated by, channel by channel: nothing, the "query" or the "value" of the same
            token, through a small map per head. The gate is 1 everywhere until it is trained.
        per: one sequence of coefficients for each "channel" of each head, or one for the whole "head".
        normalise: make the coefficients positive, exp(encoder), and divide every row by its sum over the keys
            that exist: a row of P is then a distribution, as a row of attention is. False is the published
            operator.
    """

    decay: float | None = 0.99
    rpe_width: int = 64
    rpe_layers: int = 1
    gate: Literal["none", "query", "value"] = "none"
    per: Literal["channel", "head"] = "channel"
    normalise: bool = True

    def __post_init__(self) -> None:
        inside = self.decay is None or 0.0 < self.decay <= 1.0
        self.require(inside, f"decay must lie in (0, 1], got {self.decay}")
        self.require(self.rpe_width >= 1, f"rpe_width must be at least 1, got {self.rpe_width}")
        self.require(self.rpe_layers >= 0, f"rpe_layers can't be negative, got {self.rpe_layers}")
        gates, pers = ("none", "query", "value"), ("channel", "head")
        self.require(self.gate in gates, f"gate must be one of {', '.join(gates)}, got {self.gate!r}")
        self.require(self.per in pers, f"per must be one of {', '.join(pers)}, got {self.per!r}")


class Gate(nn.Module):
    """2 sigmoid(x W + b) per head: 1 everywhere at the start, between 0 and 2 afterwards."""

    def __init__(self, heads: int, read: int, gated: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, read, gated))
        self.bias = nn.Parameter(torch.zeros(heads, 1, gated))

    def forward(self, operand: Tensor) -> Tensor:
        """(B, H or G, T, read) to (B, H, T, gated), in float32 at least."""
        groups, dtype = self.weight.shape[0] // operand.shape[1], at_least_float32(operand.dtype)
        weight, bias = (each.to(dtype).unflatten(0, (-1, groups)) for each in (self.weight, self.bias))
        return 2.0 * torch.sigmoid(operand.to(dtype)[:, :, None] @ weight + bias).flatten(1, 2)


@register("toeplitz")
class ToeplitzMixer(Mixer):
    """y_i = sum over j of t_{i-j} v_j, by FFT: n log n time, and no use for queries and keys."""

    Config = Toeplitz
    config: Toeplitz

    def __init__(self, spec: AttentionSpec, config: Toeplitz | None = None) -> None:
        config = config or Toeplitz()
        super().__init__(spec, config)
        self.channels = spec.value_dim if config.per == "channel" else 1
        self.encoder = PositionEncoder(config.rpe_width, config.rpe_layers, spec.heads * self.channels)
        self.gate: Gate | None = None
        self.operands = ("value", "padding")
        if config.gate == "query":
            self.operands = ("query", "value", "padding")
            self.gate = Gate(spec.heads, spec.head_dim, spec.value_dim)
        elif config.gate == "value":
            self.gate = Gate(spec.heads, spec.value_dim, spec.value_dim)
        self._kernels: Recent[tuple[Tensor, Tensor | None, Tensor | None]] = Recent()

    @classmethod
    def supports(cls, spec: AttentionSpec, config: Toeplitz) -> Unsupported | None:
        """Self-attention in which queries see themselves: its scores, and what biases or caps them, are gone."""
        if spec.cross:
            return Unsupported("'toeplitz' needs as many queries as keys, this is cross-attention")
        if any(bound is not None and bound < 0 for bound in spec.window):
            return Unsupported("'toeplitz' needs every query to see itself, here a window leaves it out")
        return None

    @property
    def order(self) -> Order:
        """Three FFTs over the length."""
        return "n log n"

    def coefficients(self, tokens: int) -> Tensor:
        """t_k for all offsets k = i - j of so many tokens, in float32 at least.

        Returns:
            (H, E or 1, offsets), the offsets being 0..T-1 if causal, else -(T-1)..T-1.
        """
        spec, config = self.spec, self.config
        offset = torch.arange(0 if spec.causal else 1 - tokens, tokens, device=self.encoder.first.weight.device)
        encoded = self.encoder(offset).t().unflatten(0, (spec.heads, self.channels))
        # As a logarithm and never in bfloat16, in which 0.999 is 1.
        fade = offset.abs().to(encoded.dtype) * math.log(1.0 if config.decay is None else config.decay)
        left, right = spec.window
        hidden = torch.zeros_like(offset, dtype=torch.bool)
        if left is not None:
            hidden = hidden | (offset > left)
        if right is not None:
            hidden = hidden | (offset < -right)
        if not config.normalise:
            return (encoded * fade.exp()).masked_fill(hidden, 0.0)
        logs = (encoded + fade).masked_fill(hidden, -torch.inf)
        return (logs - logs.detach().amax(-1, keepdim=True)).exp()  # rows are divided by their sum: any factor will do

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
        """See Mixer.forward. Queries that don't exist are served too, but may get next to nothing."""
        assert value is not None
        T, dtype = value.shape[2], transform_dtype(value.shape[2], value.dtype)
        if padding is not None and plain_inference(padding) and bool(padding.all()):
            padding = None
        if padding is not None:
            value = value.masked_fill(~padding[:, None, :, None], 0.0)
        length = transform_length(T)
        spectrum, scale, itself = self._kernel(T, length, dtype)
        if padding is None or itself is None:
            mixed = convolve(spectrum, value.to(dtype), length, scale)
        else:
            seen = convolve(spectrum, padding[:, None, :, None].to(dtype), length)
            # Every query that exists sees itself. The others may be so far from all keys that only rounding
            # errors are left of their sum.
            mixed = convolve(spectrum, value.to(dtype), length) / torch.maximum(seen, itself)
        if self.gate is not None:
            operand = query if self.config.gate == "query" else value
            assert operand is not None
            mixed = mixed * self.gate(operand)
        return mixed.to(value.dtype)

    def _kernel(self, tokens: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the values are convolved with, kept between calls in plain inference.

        Returns:
            The spectrum and, where rows are normalised, 1 / the sum of every row over all keys (H, E or 1, T)
            and what every query gives itself (H, 1, E or 1).
        """

        def make() -> tuple[Tensor, Tensor | None, Tensor | None]:
            coefficients = self.coefficients(tokens).to(dtype)
            spectrum = spectrum_of(coefficients, length, self.spec.causal)
            if not self.config.normalise:
                return spectrum, None, None
            middle = 0 if self.spec.causal else tokens - 1
            sums = coefficients[..., middle:].cumsum(-1)
            if not self.spec.causal:
                future = coefficients[..., :middle].flip(-1).cumsum(-1).flip(-1)
                sums = sums + F.pad(future, (0, 1))
            tiny = torch.finfo(dtype).tiny
            itself = coefficients[..., middle, None].clamp(min=tiny).transpose(1, 2)
            return spectrum, sums.clamp(min=tiny).reciprocal(), itself

        parameters = list(self.encoder.parameters())
        if self.training or not plain_inference(*parameters):
            return make()
        return self._kernels.get((tokens, length, dtype), parameters, make)

    def reference(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """The dense matrix P, from coefficients that are computed one offset at a time."""
        assert value is not None
        parameters = {name: each.to(self.encoder.dtype) for name, each in self.named_parameters()}
        return toeplitz_mixer_reference(self.spec, self.config, parameters, query, value, padding)
