"""A Toeplitz mixer token by token in ONNX: from all values so far, which grow, rather than from a ring of the most."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.export.onnx.lowered_toeplitz import LoweredToeplitz
from remixer.export.onnx.weights import with_weights_of
from remixer.mixers.base import State
from remixer.mixers.precision import at_least_float32
from remixer.mixers.toeplitz import ToeplitzMixer


class CachedToeplitz(ToeplitzMixer):
    """The numbers of a Toeplitz mixer in eval mode. A token costs what the tokens before it do, no more.

    Its state is kernel (H, E or 1, N), the coefficients t_{N-1} to t_0; values (B, G, E, P), P being 0 at first, or
    how far back a window reaches; where rows are normalised, itself, t_0 as a divisor, and exist (B, P) or, where keys
    are weighed, what they weigh (B, G, E or 1, P).
    """

    of_tokens = ("exist",)

    @classmethod
    def of(cls, mixer: ToeplitzMixer) -> CachedToeplitz:
        """With the weights of a mixer, which are shared."""
        return with_weights_of(mixer, cls(mixer.spec, mixer.config))

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
        mixed: Tensor = LoweredToeplitz(self, None)(query, key, value, padding=padding)
        return mixed

    def remembers(self, length: int) -> int:
        """See Mixer.remembers: what is kept grows, and so has coefficients for all tokens."""
        return length

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """See Mixer.initial_state."""
        self.check_steps(length)
        left, dtype = self.spec.window[0], at_least_float32(like.dtype)
        kept = length if left is None else min(length, left + 1)
        coefficients = self.coefficients(length)[..., :kept].to(dtype)
        past = 0 if left is None else kept - 1
        state = {
            "kernel": coefficients.flip(-1),
            "values": like.new_zeros(batch, self.spec.kv_heads, self.spec.value_dim, past, dtype=dtype),
        }
        if self.normalise:
            state["itself"] = coefficients[..., 0].clamp(min=torch.finfo(dtype).tiny)[:, None]
            state["exist"] = like.new_zeros(batch, past, dtype=torch.bool)
            if self.key_weights is not None:
                state["exist"] = like.new_zeros(batch, self.spec.kv_heads, self.channels, past, dtype=dtype)
        return state

    def _filled(self, state: State, value: Tensor, exist: Tensor | None) -> State:
        """See ToeplitzOperator._filled."""
        return self._kept(self._extended(state, value, exist))

    def _advance(self, state: State, value: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor | None, State]:
        """See ToeplitzOperator._advance."""
        state = self._extended(state, value, exist)
        kernel, values = state["kernel"], state["values"]
        S = values.shape[-1]
        weights = kernel.narrow(-1, kernel.shape[-1] - S, S)
        by_head = weights.unflatten(0, (self.spec.kv_heads, -1))
        if self.channels == 1:
            mixed = by_head[..., 0, :] @ values.transpose(2, 3)  # (B, G, groups, E)
        else:
            mixed = (values[:, :, None] * by_head).sum(-1)
        mixed, seen = mixed.flatten(1, 2)[:, :, None], None
        if exist is not None and self.key_weights is None:
            seen = state["exist"].to(values.dtype)[:, None, None] @ weights.transpose(1, 2)
        elif exist is not None:
            seen = (state["exist"][:, :, None] * by_head).sum(-1).flatten(1, 2)[:, :, None]
        return mixed, seen, self._kept(state)

    def _kept(self, state: State) -> State:
        """What tokens to come may see."""
        if self.spec.window[0] is None:
            return state
        past, S = state["kernel"].shape[-1] - 1, state["values"].shape[-1]
        names = ("values", "exist") if self.normalise else ("values",)
        return {**state, **{name: state[name].narrow(-1, S - past, past) for name in names}}

    def _extended(self, state: State, value: Tensor, exist: Tensor | None) -> State:
        """The state with further tokens: value (B, G, T, E), exist (B, G or 1, T, E or 1) for a state that counts."""
        new = {"values": value.transpose(2, 3)}
        if exist is not None:
            new["exist"] = exist[:, 0, :, 0] if self.key_weights is None else exist.transpose(2, 3)
        longer = {name: torch.cat([state[name], each.to(state[name].dtype)], -1) for name, each in new.items()}
        return {**state, **longer}
