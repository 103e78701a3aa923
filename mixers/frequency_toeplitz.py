"""Toeplitz token mixing learned in the frequency domain.

Source: Moreno et al., 2023, "SKI to go Faster: Accelerating Toeplitz Neural Networks via Asymmetric Kernels", FD-TNN.
It reads the response at T + 1 frequencies; the authors' code at those of the next power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.convolution import transform_length
from remixer.mixers.convolution_in_c import Spectrum, length_in_c
from remixer.mixers.frequency_reference import frequency_mixer_reference
from remixer.mixers.registry import register
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz_kernel import CompiledKernel, Form, Kernel
from remixer.mixers.toeplitz_operator import OperatorConfig, ToeplitzOperator


@dataclass(frozen=True, kw_only=True)
class FrequencyToeplitz(OperatorConfig):
    """Replace an attention by a convolution over relative positions that is learned as a frequency response.

    Coefficients fade with the offset since the response is smooth, without a decay. Nothing is normalised.

    Attributes:
        rpe_width: hidden size of the encoder, which gives the response.
        rpe_layers: number of its hidden layers.
        gate: what the output is gated by, channel by channel: nothing, the "query" or the "value" of the same
            token, through a small map per head. The gate is 1 everywhere until it is trained.
        per: one response for each "channel" of each head, or one for the whole "head".
        weigh: "none": other weights take rows that are divided by their sums.

    Raises:
        MixerConfigError: an option has a value that no attention could take.
    """


@register("frequency_toeplitz")
class FrequencyToeplitzMixer(ToeplitzOperator):
    """The encoder, read at the frequencies pi k / T, k = 0..T, is the transform of 2 T coefficients.

    Bidirectional, it gives real and imaginary parts, the imaginary ones at 0 and pi being 0. Causal, it gives the real
    part alone: the imaginary one follows, since no offset is negative. More tokens read the same response more finely,
    which changes the coefficients where they have not faded away: they depend on T. A state goes by the length that
    it was made for.
    """

    Config = FrequencyToeplitz
    config: FrequencyToeplitz

    def __init__(self, spec: AttentionSpec, config: FrequencyToeplitz | None = None) -> None:
        super().__init__(spec, config or FrequencyToeplitz(), outputs=1 if spec.causal else 2)

    def response(self, tokens: int) -> Tensor:
        """The transform of the coefficients: (H, E or 1, T + 1), complex."""
        k = torch.arange(tokens + 1, device=self.encoder.first.weight.device)
        encoded = self.encoder(k.to(self.encoder.dtype) * torch.pi / tokens)
        encoded = encoded.unflatten(0, (-1, self.spec.heads, self.channels))
        if self.spec.causal:
            return causal_response(encoded[0])
        inside = (k > 0) & (k < tokens)
        return torch.complex(encoded[0], encoded[1] * inside)

    def coefficients(self, tokens: int) -> Tensor:
        """See ToeplitzOperator.coefficients."""
        taps = torch.fft.irfft(self.response(tokens), 2 * tokens)  # offsets 0..T-1, one unused, -(T-1)..-1
        past = taps[..., :tokens]
        both = past if self.spec.causal else torch.cat([taps[..., tokens + 1 :], past], -1)
        return self.seen(both, self.offsets(tokens), 0.0)

    def prefill(self, length: int, **operands: Tensor | None) -> tuple[Tensor, State]:
        """See Mixer.prefill. As if tokens that don't exist followed: the coefficients are those of the whole length."""
        value = operands["value"]
        assert value is not None
        T = value.shape[2]
        behind = {"value": (0, 0, 0, length - T), "query": (0, 0, 0, length - T), "padding": (0, length - T)}
        whole = {name: each if each is None else F.pad(each, behind[name]) for name, each in operands.items()}
        return self.forward(**whole)[:, :, :T], self.state_after(length, **operands)

    def _new_kernel(self, tokens: int, dtype: torch.dtype, form: Form) -> Kernel | CompiledKernel:
        if self.spec.windowed or form == "matrix" or transform_length(tokens) != 2 * tokens:
            return super()._new_kernel(tokens, dtype, form)
        # Nothing is transformed; `dtype.to_complex()` would break a graph of torch.compile in two.
        response = self.response(tokens) / (2 * tokens)
        response = response.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
        if form == "compiled" and length_in_c(2 * tokens) == 2 * tokens:
            return CompiledKernel(Spectrum.of(response, 2 * tokens))
        return Kernel("spectrum", response, 2 * tokens, self.spec.causal)

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
        """The dense matrix P, from coefficients that are summed up one frequency at a time."""
        assert value is not None
        parameters = {name: each.to(self.encoder.dtype) for name, each in self.named_parameters()}
        return frequency_mixer_reference(self.spec, self.config, parameters, query, value, padding)


def causal_response(real: Tensor) -> Tensor:
    """The response with this real part of which no coefficient has a negative offset.

    The discrete Hilbert transform: coefficients of an even sequence, with offsets k and -k folded onto k. The first
    tap and the last are their own mirror images. (The authors' code doubles the last one all the same; the real part
    is then no longer what was given.)

    Args:
        real: (..., T + 1), at the frequencies pi k / T.

    Returns:
        (..., T + 1), complex, its real part being the given one.

    Examples:
        >>> real = torch.randn(9, dtype=torch.float64)
        >>> response = causal_response(real)
        >>> torch.allclose(response.real, real), bool(torch.fft.irfft(response)[9:].abs().max() < 1e-15)
        (True, True)
    """
    T = real.shape[-1] - 1
    even = torch.fft.irfft(real, 2 * T)
    k = torch.arange(2 * T, device=real.device)
    folds = torch.where(k < T, 2.0, 0.0) - (k == 0).to(real.dtype) + (k == T).to(real.dtype)
    return torch.fft.rfft(even * folds)
