"""What a graph gives in float64: who is right, where two ways of rounding to float32 lie too far apart.

Some inputs make a model blow up rounding. Of 24 random ids of which the first eight are padding, SmolLM2 gives logits
in float32 that are 6e-5 of the largest from those in float64, in torch itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from remixer.rewrite.agreement import NotRunError, first_line
from remixer.rewrite.inputs import Call, tensors_in

PIECE = 2**20  # how many numbers of a weight are widened at once


def outputs_in_float64(module: fx.GraphModule, call: Call) -> list[Tensor]:
    """All tensors that a graph gives for a call, in float64 wherever it computes in float32.

    Raises:
        NotRunError: it doesn't run in float64.
    """
    try:
        with torch.no_grad():
            return tensors_in(_InFloat64(module).run(*pytree.tree_leaves(call)))
    except Exception as error:  # operators and mixers may raise anything
        raise NotRunError(first_line(error)) from error


class _InFloat64(fx.Interpreter):
    """Runs a graph with each operand in float64; of weights only a piece of one, so that no model is copied."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return (args, kwargs) if n.target in _WIDENING else (map_aggregate(args, _wider), map_aggregate(kwargs, _wider))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _WIDENING:
            return _WIDENING[target](*args, **kwargs)
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return copy.deepcopy(self.fetch_attr(str(target))).double()(*args, **kwargs)


def _wider(value: Any) -> Any:
    """A float32 tensor, or the type itself, in float64; all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product with a float32 weight, which is widened some rows at a time."""
    x, rows = x.double(), max(1, PIECE // max(1, weight.shape[1]))
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    for start in range(0, weight.shape[0], rows):
        out[..., start : start + rows] = x @ weight[start : start + rows].double().T
    return out if bias is None else out.add_(bias)


def _embedding(weight: Tensor, *args: Any) -> Tensor:
    """Rows of a float32 table, widened when they are picked."""
    return torch.ops.aten.embedding.default(weight, *args).double()


_WIDENING: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.embedding.default: _embedding,
}
