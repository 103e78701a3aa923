"""What a graph gives in float64: who is right, where two ways of rounding to float32 lie too far apart.

Some inputs make a model blow up rounding. Of 24 random ids of which the first eight are padding, SmolLM2 gives logits
in float32 that are 6e-5 of the largest from those in float64, in torch itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from remixer.rewrite.agreement import NotRunError, first_line
from remixer.rewrite.inputs import Call, tensors_in


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
    """Runs a graph with each operand in float64, weights one node's at a time: there is no second copy of a model."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return map_aggregate(args, _wider), map_aggregate(kwargs, _wider)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return copy.deepcopy(self.fetch_attr(str(target))).double()(*args, **kwargs)


def _wider(value: Any) -> Any:
    """A float32 tensor, or the type itself, in float64; all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value
