"""Attention of a process's queries as one operator, since which keys they meet depends on which process it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.distributed.pieces import Ring
from remixer.mixers.precision import at_least_float32


def differentiable(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """An operator, in graphs too, with a backward that is one as well.

    Args:
        name: of the operator.
        forward: takes query (B, H, n, D), key (B, G, m, D), value (B, G, m, E), exist, bias and what a `Ring` holds;
            gives the output (B, H, n, E) and the logarithms (B, H, n) of the sums of the exponentials of the scores.
        backward: takes the output's gradient, all of these tensors, and what a `Ring` holds; gives the gradients of
            query, key, value and bias.
    """
    attend = torch.library.custom_op(f"remixer::{name}", forward, mutates_args=())
    gradients = torch.library.custom_op(f"remixer::{name}_backward", backward, mutates_args=())

    @attend.register_fake
    def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        B, H, n, _D = query.shape
        return value.new_empty(B, H, n, value.shape[-1]), query.new_empty(B, H, n, dtype=at_least_float32(query.dtype))

    @gradients.register_fake
    def _(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, exist: Tensor | None, bias: Tensor | None, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = at_least_float32(query.dtype)
        of_bias = query.new_empty(0, dtype=dtype) if bias is None else torch.empty_like(bias, dtype=dtype)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_bias

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, exist, bias, *ring = inputs
        ctx.save_for_backward(query, key, value, exist, bias, *output)
        ctx.ring = ring
        ctx.mark_non_differentiable(output[1])

    def back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        query, key, value, exist, bias, out, lse = ctx.saved_tensors
        found = gradients(grad.contiguous(), query, key, value, exist, bias, out, lse, *ctx.ring)
        of_bias = None if bias is None else found[3].to(bias.dtype)
        return (*found[:3], None, of_bias, *(None for _ in Ring._fields))

    attend.register_autograd(back, setup_context=save)
    return attend
