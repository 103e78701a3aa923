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

from remixer.rewrite.agreement import run
from remixer.rewrite.inputs import Call, tensors_in


def outputs_in_float64(module: fx.GraphModule, call: Call) -> list[Tensor]:
    """All tensors that a graph gives for a call, in float64 wherever it computes in float32.

    Raises:
        NotRunError: it doesn't run in float64.
    """
    wide = copy.deepcopy(module).double()
    for part in wide.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.args, node.kwargs = map_aggregate(node.args, _wider), map_aggregate(node.kwargs, _wider)
            part.recompile()
    return tensors_in(run(wide, pytree.tree_map(_wider, call)))


def _wider(value: Any) -> Any:
    """A float32 tensor, or the type itself, in float64; all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value
