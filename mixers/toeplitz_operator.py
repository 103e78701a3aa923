"""What Toeplitz mixers share, whatever gives their coefficients (Qin et al., 2023, section 3.1: the TNO)."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from remixer.mixers.base import Mixer, MixerConfig, Order, State, Unsupported
from remixer.mixers.convolution import transform_dtype
from remixer.mixers.convolution_in_c import convolvable_in_c
from remixer.mixers.eager import all_exist, in_training, plain_inference, unobserved
from remixer.mixers.errors import NoStepError
from remixer.mixers.gate import Gate
from remixer.mixers.key_weights import KeyWeights, weighed
from remixer.mixers.local_kernel import LocalKernel, length_of_blocks, less_work
from remixer.mixers.position_encoder import PositionEncoder
from remixer.mixers.precision import at_least_float32
from remixer.mixers.recent import Recent
from remixer.mixers.ring_buffer import empty_ring, fill_ring, step_ring
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz_kernel import CompiledKernel, Form, Kernel, kernel_of

# Up to so many tokens a matrix per head is faster than transforms, and more exact.
DIRECT_AT_MOST = 128
# From so many tokens on, and so many times the reach of the coefficients, they are multiplied block by block; by
# compiled code from so many on, where it is less work.
LONG, REACHES = 2**15, 4
LONG_IN_C, REACHES_IN_C = 2**12, 2


@dataclass(frozen=True, kw_only=True)
class OperatorConfig(MixerConfig):
    """The options of every Toeplitz mixer.

    Attributes:
        rpe_width: hidden size of the relative position encoder, which gives the coefficients.
        rpe_layers: number of its hidden layers.
        gate: what the output is gated by, channel by channel: nothing, the "query" or the "value" of the same
            token, through a small map per head. The gate is 1 everywhere until it is trained.
        per: one sequence of coefficients for each "channel" of each head, or one for the whole "head".
        weigh: whether a token counts by its "key" too, in rows that are divided by their sum: through a small map per
            key head, and channel if `per` says so. All tokens weigh the same until it is trained.
    """

    rpe_width: int = 64
    rpe_layers: int = 1
    gate: Literal["none", "query", "value"] = "none"
    per: Literal["channel", "head"] = "channel"
    weigh: Literal["none", "key"] = "none"

    def __post_init__(self) -> None:
        self.require(self.rpe_width >= 1, f"rpe_width must be at least 1, got {self.rpe_width}")
        self.require(self.rpe_layers >= 0, f"rpe_layers can't be negative, got {self.rpe_layers}")
        self.require_one_of("gate", ("none", "query", "value"))
        self.require_one_of("per", ("channel", "head"))
        self.require_one_of("weigh", ("none", "key"))
        normalised = self.weigh == "none" or getattr(self, "normalise", False)
        self.require(normalised, f"weigh={self.weigh!r} takes rows that are divided by their sum, these are not")

    def require_one_of(self, option: str, choices: tuple[str, ...]) -> None:
        """Raise MixerConfigError unless an option has one of these values."""
        value = getattr(self, option)
        self.require(value in choices, f"{option} must be one of {', '.join(choices)}, got {value!r}")


class ToeplitzOperator(Mixer):
    """y_i = sum over j of t_{i-j} w_j v_j, by FFT: n log n time. w is 1, or goes by the keys.

    Args:
        spec: of the attention that is replaced.
        config: its options.
        outputs: how many numbers the encoder gives per coefficient.

    Attributes:
        normalise: divide every row by its sum over the keys that exist; coefficients must be positive then.
    """

    config: OperatorConfig
    normalise = False
    of_tokens: tuple[str, ...] = ("position", "exist", "left")

    def __init__(self, spec: AttentionSpec, config: OperatorConfig, outputs: int = 1) -> None:
        super().__init__(spec, config)
        self.channels = spec.value_dim if config.per == "channel" else 1
        self.encoder = PositionEncoder(config.rpe_width, config.rpe_layers, outputs * spec.heads * self.channels)
        self.gate: Gate | None = None
        self.key_weights: KeyWeights | None = None
        self.operands = ("value", "padding")
        if config.weigh == "key":
            self.operands = ("key", *self.operands)
            self.key_weights = KeyWeights(spec.kv_heads, spec.head_dim, self.channels)
            self.of_tokens = tuple(name for name in self.of_tokens if name != "exist")
        if config.gate == "query":
            self.operands = ("query", *self.operands)
            self.gate = Gate(spec.heads, spec.head_dim, spec.value_dim)
        elif config.gate == "value":
            self.gate = Gate(spec.heads, spec.value_dim, spec.value_dim)
        self._kernels: Recent[Kernel | CompiledKernel] = Recent()
        self._local: Recent[LocalKernel] = Recent()
        self._reaches: Recent[int | None] = Recent()
        self._rings: Recent[Tensor] = Recent()

    @classmethod
    def supports(cls, spec: AttentionSpec, config: OperatorConfig) -> Unsupported | None:
        """Self-attention in which queries see themselves: its scores, and what biases or caps them, are gone."""
        if spec.cross:
            return Unsupported(f"{cls.Config.name!r} needs as many queries as keys, this is cross-attention")
        if any(bound is not None and bound < 0 for bound in spec.window):
            return Unsupported(f"{cls.Config.name!r} needs every query to see itself, here a window leaves it out")
        return None

    @property
    def order(self) -> Order:
        """Three FFTs over the length."""
        return "n log n"

    def flops(self, tokens: int) -> float:
        """See Mixer.flops: a transform of 2 T real numbers forth and back for every channel, gate and key weights."""
        length = 2 * tokens
        channels = self.spec.value_dim + (self.channels if self.key_weights is not None else 0)
        transforms = (self.spec.kv_heads + self.spec.heads) * channels * 2.5 * length * math.log2(length)
        maps = sum(each.weight.numel() * 2 * tokens for each in (self.gate, self.key_weights) if each is not None)
        return transforms + 6.0 * self.spec.heads * channels * (tokens + 1) + maps

    @abc.abstractmethod
    def coefficients(self, tokens: int) -> Tensor:
        """t_k for all offsets k = i - j of so many tokens, in float32 at least.

        Returns:
            (H, E or 1, offsets), the offsets being 0..T-1 if causal, else -(T-1)..T-1.
        """

    def offsets(self, tokens: int) -> Tensor:
        """(offsets,), those of `coefficients`."""
        first = 0 if self.spec.causal else 1 - tokens
        return torch.arange(first, tokens, device=self.encoder.first.weight.device)

    def seen(self, coefficients: Tensor, offsets: Tensor, hidden: float) -> Tensor:
        """The coefficients (..., offsets), `hidden` outside of the window that the replaced attention saw."""
        left, right = self.spec.window
        if left is not None:
            coefficients = coefficients.masked_fill(offsets > left, hidden)
        if right is not None and not self.spec.causal:
            coefficients = coefficients.masked_fill(offsets < -right, hidden)
        return coefficients

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
        if all_exist(padding):
            padding = None
        tokens = weighed(value, padding, key, self.key_weights)
        local = self._local_kernel(tokens.values)
        if local is not None:
            return self._gated(local.times(tokens.values, tokens.weights, tokens.own), query, tokens.value)
        kernel = self._kernel(tokens.values)
        if tokens.weights is None or kernel.itself is None:
            mixed = kernel.times(tokens.values, kernel.scale)
        else:
            seen = kernel.times(tokens.weights)
            # Every query that exists sees itself. The others may be so far from all keys that only rounding
            # errors are left of their sum.
            mixed = kernel.times(tokens.values) / torch.maximum(seen, tokens.least(kernel.itself))
        return self._gated(mixed, query, tokens.value)

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See Mixer.initial_state: the coefficients, and the last values in float32 at least.

        After `length` tokens every further one makes the oldest forgotten, as a window of `length` would.

        Raises:
            NoStepError: the replaced attention is not causal.
            ValueError: length is less than 1.
        """
        self.check_steps(length)
        return empty_ring(self._ring(length, like), batch, self.spec.kv_heads, self.spec.value_dim, self.counted)

    @property
    def counted(self) -> tuple[int, int] | None:
        """Heads and channels of what a state counts tokens by, where rows are normalised."""
        if not self.normalise:
            return None
        return (1, 1) if self.key_weights is None else (self.spec.kv_heads, self.channels)

    def check_steps(self, length: int) -> None:
        """Raise NoStepError or ValueError where there can be no state for so many tokens."""
        if not self.spec.causal:
            raise NoStepError(f"{self.config.name!r} can't go token by token here: the attention sees tokens to come")
        if length < 1:
            raise ValueError(f"a state must be for one token at least, got length {length}")

    def step(
        self,
        state: State,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See Mixer.step. A token costs as many products per channel as tokens are remembered."""
        assert value is not None
        token = weighed(value, padding, key, self.key_weights)
        mixed, seen, state = self._advance(state, token.values, token.counted() if self.normalise else None)
        if seen is not None:
            mixed = mixed / torch.maximum(seen, token.least(state["itself"]))
        return self._gated(mixed, query, token.value), state

    def state_after(self, length: int, **operands: Tensor | None) -> State:
        """See Mixer.state_after."""
        value = operands["value"]
        assert value is not None
        state = self.initial_state(value.shape[0], length, value)
        if "kernel" not in state:
            return super().state_after(length, **operands)
        tokens = weighed(value, operands.get("padding"), operands.get("key"), self.key_weights)
        return self._filled(state, tokens.values, tokens.counted() if self.normalise else None)

    def _filled(self, state: State, value: Tensor, exist: Tensor | None) -> State:
        """The empty state with the first tokens in it, see `fill_ring`."""
        return fill_ring(state, value, exist)

    def _advance(self, state: State, value: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor | None, State]:
        """What the token sees (B, H, 1, E), the sum of its coefficients where rows are normalised, the new state."""
        return step_ring(state, value, exist)

    def _gated(self, mixed: Tensor, query: Tensor | None, value: Tensor) -> Tensor:
        """What was mixed, through the gate, in the dtype of value."""
        if self.gate is not None:
            operand = query if self.config.gate == "query" else value
            assert operand is not None
            mixed = mixed * self.gate(operand)
        return mixed.to(value.dtype)

    def reach(self, dtype: torch.dtype, *, rounded: bool = False) -> int | None:
        """Of how many offsets to one side a coefficient may be other than 0 in this precision; None: of all.

        Args:
            dtype: the precision.
            rounded: leave out what a transform's rounding errors, which go with the largest coefficient, hide by far.
        """
        return None

    def _local_kernel(self, value: Tensor) -> LocalKernel | None:
        """For values (B, G, T, E) that are much longer than the reach; kept between calls."""
        parameters, tokens = self._parameters_of_kernel(), value.shape[2]
        if self.training or not plain_inference(value, *parameters) or tokens < min(LONG, LONG_IN_C):
            return None
        in_c, causal, dtype = convolvable_in_c(value, self.spec.heads), self.spec.causal, at_least_float32(value.dtype)
        least, reaches = (LONG_IN_C, REACHES_IN_C) if in_c else (LONG, REACHES)
        if tokens < least:
            return None
        reach = self._reaches.get(dtype, parameters, lambda: self.reach(dtype, rounded=True))
        if reach is None or tokens < reaches * reach:
            return None
        length = length_of_blocks(tokens, reach, causal) if in_c else None
        if length is not None and not less_work(tokens, length, reach, causal):
            return None

        def make() -> LocalKernel:
            coefficients = self.coefficients(reach).to(dtype)
            return LocalKernel.of(coefficients, causal, self.normalise, compiled_length=length)

        return self._local.get((reach, dtype, length), parameters, make)

    def _parameters_of_kernel(self) -> list[Tensor]:
        return [each for name, each in self.named_parameters() if not name.startswith(("gate.", "key_weights."))]

    def _kernel(self, value: Tensor) -> Kernel | CompiledKernel:
        """For values (B, G, T, E); kept between calls at inference."""
        tokens, dtype = value.shape[2], transform_dtype(value.shape[2], value.dtype)
        parameters = self._parameters_of_kernel()
        if self.training or not unobserved(value, *parameters):
            form: Form = "coefficients" if in_training(value, *parameters) else "spectrum"
            return self._new_kernel(tokens, dtype, form)
        # Autocast would round a product of matrices.
        direct = self.channels == 1 and tokens <= DIRECT_AT_MOST and not torch.is_autocast_enabled(value.device.type)
        if direct:
            form, dtype = "matrix", at_least_float32(value.dtype)
        else:
            form = "compiled" if convolvable_in_c(value, self.spec.heads) else "spectrum"
        return self._kernels.get((tokens, dtype, form), parameters, lambda: self._new_kernel(tokens, dtype, form))

    def _ring(self, length: int, like: Tensor) -> Tensor:
        """t_0 to t_{N-1}, (H, N, E or 1), as states have them; kept between calls: states are made for every prompt."""
        left, dtype = self.spec.window[0], at_least_float32(like.dtype)
        kept = length if left is None else min(length, left + 1)
        parameters = self._parameters_of_kernel()

        def make() -> Tensor:
            coefficients = self.coefficients(length)[..., :kept].to(like.device, dtype)
            return coefficients.transpose(1, 2).contiguous()

        if not unobserved(like, *parameters):
            return make()
        with torch.inference_mode(False), torch.no_grad():  # states may be used where gradients are wanted
            return self._rings.get((length, dtype, like.device), parameters, make)

    def _new_kernel(self, tokens: int, dtype: torch.dtype, form: Form) -> Kernel | CompiledKernel:
        return kernel_of(self.coefficients(tokens).to(dtype), self.spec.causal, self.normalise, form)
