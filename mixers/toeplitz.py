"""Toeplitz token mixing (Qin et al., 2023, "Toeplitz Neural Network for Sequence Modeling", section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.decay import Decay, fixed_decay
from remixer.mixers.key_start import STEPS, KeyStart, OffsetStart
from remixer.mixers.precision import at_least_float32
from remixer.mixers.registry import register
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.start import Starter
from remixer.mixers.state_space import empty_states, step_states
from remixer.mixers.toeplitz_operator import OperatorConfig, ToeplitzOperator
from remixer.mixers.toeplitz_reference import toeplitz_mixer_reference
from remixer.mixers.toeplitz_start import GateScale, ProfileStart

STRIDE = 1024  # of what is remembered: mixers whose coefficients reach about as far share what counts tokens


@dataclass(frozen=True, kw_only=True)
class Toeplitz(OperatorConfig):
    """Replace an attention by a convolution over relative positions: P_ij = t_{i-j} w_j, divided by its row's sum.

    The weight w_j of a token is 1 unless `weigh` says otherwise: P goes by positions alone then.

    Attributes:
        decay: lambda in lambda^|i-j|, or None for no decay. Offset 0 is never decayed.
        learn_decay: learn lambda = decay + (1 - decay) sigmoid(raw), for each head, and channel if `per` says so.
        rpe_width: hidden size of the relative position encoder, which gives the coefficients.
        rpe_layers: number of its hidden layers.
        gate: what the output is gated by, channel by channel: nothing, the "query" or the "value" of the same
            token, through a small map per head. The gate is 1 everywhere until it is trained.
        per: one sequence of coefficients for each "channel" of each head, or one for the whole "head".
        weigh: whether a token counts by its "key" too (Zhai et al., 2021, "An Attention Free Transformer"), through a
            small map per key head, and channel if `per` says so: what a head looks for everywhere then weighs more. All
            tokens weigh the same until it is trained. It takes normalised rows.
        normalise: make the coefficients positive, exp(encoder), and divide every row by its sum over the keys
            that exist: a row of P is then a distribution, as a row of attention is. False is the published
            operator.
        decoding: how `step` goes on from the tokens before: from a "ring" of their values, or as a linear recurrence,
            "state_space", which takes two to three times as long, and is exact for the length that the state was
            made for, and no more.

    Raises:
        MixerConfigError: an option has a value that no attention could take.
    """

    decay: float | None = 0.99
    learn_decay: bool = False
    normalise: bool = True
    decoding: Literal["ring", "state_space"] = "ring"

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = self.decay is None or 0.0 < self.decay <= 1.0
        self.require(inside, f"decay must lie in (0, 1], got {self.decay}")
        room = not self.learn_decay or (self.decay is not None and self.decay < 1.0)
        self.require(room, f"learn_decay needs a decay below 1 to start from, got {self.decay}")
        self.require_one_of("decoding", ("ring", "state_space"))


@register("toeplitz")
class ToeplitzMixer(ToeplitzOperator):
    """A Toeplitz mixer whose coefficients are those of the encoder, faded with the offset."""

    Config = Toeplitz
    config: Toeplitz

    def __init__(self, spec: AttentionSpec, config: Toeplitz | None = None) -> None:
        config = config or Toeplitz()
        super().__init__(spec, config)
        self.normalise = config.normalise
        self.decay: Decay | None = None
        if config.learn_decay:
            assert config.decay is not None
            self.decay = Decay(config.decay, spec.heads, self.channels)

    def by_head(self) -> Mapping[str, Literal["heads", "kv_heads"]] | None:
        """See Mixer.by_head."""
        names = {name for name, _ in self.named_parameters()}
        of_heads = ("encoder.last.weight", "encoder.last.bias", "decay.raw", "gate.weight", "gate.bias")
        found: dict[str, Literal["heads", "kv_heads"]] = {name: "heads" for name in of_heads if name in names}
        return found | ({"key_weights.weight": "kv_heads"} if self.key_weights is not None else {})

    def starters(self) -> tuple[Starter, ...]:
        """See Mixer.starters."""
        keys: list[Starter] = []
        if self.key_weights is not None:
            keys = [*(KeyStart(self) for _ in range(STEPS)), OffsetStart(self), KeyStart(self)]
        return (ProfileStart(self), *keys, *((GateScale(self),) if self.gate is not None else ()))

    def coefficients(self, tokens: int) -> Tensor:
        """See ToeplitzOperator.coefficients."""
        offsets = self.offsets(tokens)
        return self._coefficients(offsets, self.fade(offsets))

    def reach(self, dtype: torch.dtype, *, rounded: bool = False) -> int | None:
        """See ToeplitzOperator.reach: as far as the decay lets the largest coefficient through."""
        if self.decay is None and self.config.decay in (None, 1.0):
            return None
        slowest = float(self.fade(self.offsets(2)[-1:]).detach().max())
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the least number above 0
        # Normalised coefficients are exp(encoder), relative to the largest.
        if rounded and self.normalise:  # all that is left out sums up to a thousandth of that error at most
            least = torch.finfo(dtype).eps / 1000 * -math.expm1(slowest)
        largest = 2 * self.encoder.most if self.normalise else math.log(max(self.encoder.most, 1.0))
        return math.ceil((largest - math.log(least)) / -slowest) + 1 if slowest < 0.0 else None

    def fade(self, offsets: Tensor) -> Tensor:
        """The logarithm of what the coefficients fade by: (offsets,), or (H, E or 1, offsets) if it is learned."""
        if self.decay is not None:
            return self.decay(offsets)
        return fixed_decay(self.config.decay, offsets, self.encoder.dtype)

    def _coefficients(self, offsets: Tensor, fade: Tensor) -> Tensor:
        """The coefficients (H, E or 1, offsets), given the logarithm of what they fade by."""
        encoded = self.encoder(offsets).unflatten(0, (self.spec.heads, self.channels))
        if not self.normalise:
            return self.seen(encoded * fade.exp(), offsets, 0.0)
        # In place: no other tensor of a long sequence is as large.
        logs = self.seen(encoded.add_(fade), offsets, -torch.inf)
        return logs.sub_(logs.detach().amax(-1, keepdim=True)).exp_()  # rows are divided by their sum: any factor does

    def remembers(self, length: int) -> int:
        """See Mixer.remembers: as far as coefficients reach, rounded up."""
        reach = self.reach(at_least_float32(self.spec.dtype)) if self.config.decoding == "ring" else None
        return length if reach is None else min(length, -(-reach // STRIDE) * STRIDE)

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See ToeplitzOperator.initial_state; with decoding="state_space", no token may come after `length`."""
        if self.config.decoding == "ring":
            return super().initial_state(batch, length, like)
        self.check_steps(length)
        coefficients = self._coefficients(self.offsets(length), torch.zeros(())).to(like.device)
        log_decay = self.fade(self.offsets(2)[1:]).reshape(-1, 1 if self.decay is None else self.channels)
        heads = self.spec.kv_heads if self.decay is None else self.spec.heads
        counted = self.counted if self.key_weights is None else (heads, self.channels)
        return empty_states(coefficients, log_decay, batch, heads, self.spec.value_dim, counted)

    def _advance(self, state: State, value: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor | None, State]:
        if self.config.decoding == "ring":
            return super()._advance(state, value, exist)
        if self.decay is not None:  # a state of its own for every head
            value = value.repeat_interleave(self.spec.groups, 1)
            if exist is not None and self.key_weights is not None:
                exist = exist.repeat_interleave(self.spec.groups, 1)
        return step_states(state, value, exist)

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
        return toeplitz_mixer_reference(self.spec, self.config, parameters, query, key, value, padding)
