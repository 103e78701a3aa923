"""A causal Toeplitz product as a linear recurrence, by exact Toeplitz-to-SSM conversion.

Source: Qin and Zhong, 2023, "Accelerating Toeplitz Neural Network with Constant-time Inference Complexity" (ETSC).

Any n coefficients are exactly those of a diagonal state space: with t_n = -(t_0 + ... + t_{n-1}) appended, m = n + 1,
and b the inverse DFT of these m numbers, b_0 is 0 and t_k = sum over j = 1..n of b_j exp(-2 pi i j k / m). So

    u_k = lambda u_{k-1} + x_k,   y_k = Re sum over j of b_j u_kj,   lambda_j = decay exp(-2 pi i j / m)

gives y_i = sum over k of decay^k t_k x_{i-k}. The coefficients being real, poles come in conjugate pairs, of which one
is enough: ceil(n / 2) poles are kept, the weights of pairs doubled. The weights b stand behind the state, not
before it as in the paper, so that heads that read the same values share it.

It is exact for n tokens. Behind them the kernel goes on as decay^k times a repetition of t_0..t_n, which is not what
the encoder gives: t_n is minus the sum of all others. `step_states` refuses to go there.

Rounding, measured as |impulse response - t| / |t| over n tokens, t uniform in (0, 1):

    ==========  =====  =======  =======  ========
    state       decay  n = 64   n = 512  n = 2048
    ==========  =====  =======  =======  ========
    complex64   1      4.9e-06  1.2e-04  9.7e-04
    complex64   0.99   4.3e-06  2.8e-05  5.2e-05
    complex128  1      5.4e-14  8.7e-13  4.2e-12
    complex128  0.99   3.9e-14  7.9e-14  2.0e-13
    ==========  =====  =======  =======  ========

So the state is complex128: complex64 would soon miss even the tolerance of float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.eager import plain_inference
from remixer.mixers.errors import StateFullError


def to_state_space(coefficients: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """The poles and weights of the state space with the coefficients exp(k log_decay) t_k.

    Args:
        coefficients: (H, E or 1, n), t_0 to t_{n-1}, not decayed.
        log_decay: (H or 1, E or 1).

    Returns:
        Poles (H or 1, E or 1, ceil(n / 2)) and weights (H, E or 1, ceil(n / 2)), complex128.
    """
    coefficients = coefficients.double()
    m = coefficients.shape[-1] + 1
    closed = torch.cat([coefficients, -coefficients.sum(-1, keepdim=True)], -1)
    weights = torch.fft.rfft(closed).conj()[..., 1:] / m
    j = torch.arange(1, m // 2 + 1, device=coefficients.device)
    weights = torch.where(2 * j == m, weights, 2.0 * weights)  # the pole at -1 is its own conjugate
    angle = (-2.0 * torch.pi / m) * j.double()
    return torch.polar(log_decay.double().exp()[..., None].expand(*log_decay.shape, len(j)), angle), weights


def state_space_reference(coefficients: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """`to_state_space` as published: all n poles and, before the state or behind it, their weights.

    Returns:
        Poles and weights (..., n), complex128.
    """
    n = coefficients.shape[-1]
    closed = torch.cat([coefficients, -coefficients.sum(-1, keepdim=True)], -1).to(torch.complex128)
    poles, weights = [], []
    for j in range(1, n + 1):
        root = torch.exp(torch.tensor(-2j * torch.pi * j / (n + 1), dtype=torch.complex128))
        poles.append(log_decay.double().exp() * root)
        terms = [closed[..., k] * root**-k for k in range(n + 1)]
        weights.append(torch.stack(terms).sum(0) / (n + 1))
    return torch.stack(poles, -1), torch.stack(weights, -1)


def empty_states(
    coefficients: Tensor, log_decay: Tensor, batch: int, heads: int, channels: int, counted: tuple[int, int] | None
) -> State:
    """The state before the first token.

    Args:
        coefficients: (H, E or 1, n), t_0 to t_{n-1}, not decayed.
        log_decay: (H or 1, E or 1), H only if every head reads values of its own.
        batch: B.
        heads: how many heads of values there are: G, or H.
        channels: E.
        counted: heads and channels of what each token weighs, 1 or 0 if it only exists or not; None counts nothing.

    Returns:
        poles and weights, see `to_state_space`; values (B, heads, E, poles), complex128; left (1,), how many tokens
        may come. If asked for, exist (B, heads or 1, E or 1, poles), and itself (H, 1, E or 1), t_0 as a divisor.
    """
    poles, weights = to_state_space(coefficients, log_decay)
    state = {
        "poles": poles,
        "weights": weights,
        "values": poles.new_zeros(batch, heads, channels, poles.shape[-1]),
        "left": torch.full((1,), coefficients.shape[-1], dtype=torch.int64, device=poles.device),
    }
    if counted is not None:
        counts = (max(one, other) for one, other in zip(counted, poles.shape[:2], strict=True))
        state["exist"] = poles.new_zeros(batch, *counts, poles.shape[-1])
        first = coefficients[..., :1].transpose(1, 2).double()
        state["itself"] = first.clamp(min=torch.finfo(first.dtype).tiny)
    return state


def step_states(state: State, value: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor | None, State]:
    """Take in one token, and give what it sees.

    Args:
        state: of the tokens before; its memory is used again in plain inference.
        value: (B, heads, 1, E), 0 for tokens that don't exist.
        exist: (B, heads or 1, 1, E or 1), what it weighs, 0 for tokens that don't exist; for a state that counts.

    Returns:
        The product (B, H, 1, E), the sum of the coefficients times what tokens weigh (B, H, 1, E or 1) if the
        state counts, and the new state.

    Raises:
        StateFullError: the state was made for fewer tokens. Not in a graph, which can't look at numbers.
    """
    if not torch.compiler.is_compiling() and int(state["left"]) <= 0:
        raise StateFullError(
            "this state was made for as many tokens as it has seen, and a state space is exact for no more; "
            "ask initial_state for a greater length, or use decoding='ring', which forgets the oldest"
        )
    poles, weights = state["poles"], state["weights"]
    state = {**state, "left": state["left"] - 1, "values": _advance(state["values"], poles, value)}
    mixed = _read(state["values"], weights)
    if exist is None:
        return mixed, None, state
    state["exist"] = _advance(state["exist"], poles, exist)
    return mixed, _read(state["exist"], weights), state


def _advance(states: Tensor, poles: Tensor, entry: Tensor) -> Tensor:
    """Poles times states (B, heads, E, poles) plus an entry (B, heads, 1, E), in place where nobody can tell."""
    entry = entry.transpose(2, 3).to(states.real.dtype)
    if plain_inference(states, entry):
        return states.mul_(poles).add_(entry)
    return states * poles + entry


def _read(states: Tensor, weights: Tensor) -> Tensor:
    """Weights (H, E or 1, poles) times states (B, heads, E or 1, poles), summed over the poles: (B, H, 1, E or 1)."""
    products = states[:, :, None] * weights.unflatten(0, (states.shape[1], -1))
    return products.real.sum(-1).flatten(1, 2)[:, :, None]
