"""A causal Toeplitz product token by token, from the last values: y_i = sum over k < N of t_k v_{i-k}.

The values of the last N tokens lie in a ring: token i in slot i mod N, over the one that is N tokens older. A token
costs N products per channel, and N values of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.eager import plain_inference


def empty_ring(kernel: Tensor, batch: int, heads: int, channels: int, counted: tuple[int, int] | None) -> State:
    """The state before the first token.

    Args:
        kernel: (H, N, E or 1), the coefficients t_0 to t_{N-1}.
        batch: B.
        heads: G.
        channels: E.
        counted: heads and channels of what each token weighs, 1 or 0 if it only exists or not; None counts nothing.

    Returns:
        The kernel; values (B, G, N, E); position (1,), how many tokens there were.
        If asked for, exist (B, G or 1, N, E or 1), and itself (H, 1, E or 1), t_0 as a divisor.
    """
    N = kernel.shape[1]
    state = {
        "kernel": kernel,
        "values": kernel.new_zeros(batch, heads, N, channels),
        "position": torch.zeros(1, dtype=torch.int64, device=kernel.device),
    }
    if counted is not None:
        state["exist"] = kernel.new_zeros(batch, counted[0], N, counted[1])
        state["itself"] = kernel[:, :1].clamp(min=torch.finfo(kernel.dtype).tiny)
    return state


def fill_ring(state: State, value: Tensor, exist: Tensor | None) -> State:
    """The empty state with the first tokens in it: value (B, G, T, E), exist likewise if it counts."""
    last = torch.arange(value.shape[2], device=value.device)[-1]
    token, there = in_slots(last, state["kernel"].shape[1])
    state = {**state, "position": (last + 1).view(1)}
    for name, tokens in (("values", value), ("exist", exist)):
        if tokens is not None:
            held = tokens.index_select(2, token).masked_fill(~there[:, None], 0.0)
            state[name] = held.to(state[name].dtype)
    return state


def in_slots(last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which token each slot of a ring holds, (size,), and whether it holds any, when token `last` was the last."""
    token = last - (last - torch.arange(size, device=last.device)) % size
    return token.clamp(min=0), token >= 0


def step_ring(state: State, value: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor | None, State]:
    """Take in one token, and give what it sees; what is N tokens old or older is forgotten.

    Args:
        state: of the tokens before; its memory is used again in plain inference.
        value: (B, G, 1, E), 0 for tokens that don't exist.
        exist: (B, G or 1, 1, E or 1), what it weighs, 0 for tokens that don't exist; for a state that counts.

    Returns:
        The product (B, H, 1, E), the sum of the coefficients times what tokens weigh (B, H, 1, E or 1) if the
        state counts, and the new state.
    """
    position, kernel = state["position"], state["kernel"]
    N = kernel.shape[1]
    slot = position % N
    offsets = (position - torch.arange(N, device=position.device)) % N  # of what each slot holds, or will
    turned = kernel.index_select(1, offsets)
    state = {**state, "position": position + 1, "values": _put(state["values"], slot, value)}
    mixed = _sum(state["values"], turned)
    if exist is None:
        return mixed, None, state
    state["exist"] = _put(state["exist"], slot, exist)
    return mixed, _sum(state["exist"], turned), state


def _put(ring: Tensor, slot: Tensor, entry: Tensor) -> Tensor:
    """The ring (B, G or 1, N, E or 1) with an entry in a slot, in place where nobody can tell."""
    entry = entry.to(ring.dtype)
    return ring.index_copy_(2, slot, entry) if plain_inference(ring, entry) else ring.index_copy(2, slot, entry)


def _sum(ring: Tensor, kernel: Tensor) -> Tensor:
    """Ring (B, G or 1, N, E or 1) times kernel (H, N, E or 1), summed over the slots: (B, H, 1, E or 1)."""
    products = ring[:, :, None] * kernel.unflatten(0, (ring.shape[1], -1))
    return products.sum(-2, keepdim=True).flatten(1, 2)
