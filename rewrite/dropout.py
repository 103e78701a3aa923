"""Dropout as modules, so that a captured graph follows `.train()` and `.eval()`."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from remixer.rewrite.modules import add_module

aten = torch.ops.aten

DROPOUTS = {
    aten.dropout.default: "dropout",
    aten.dropout_.default: "dropout",
    aten.alpha_dropout.default: "alpha_dropout",
    aten.feature_dropout.default: "feature_dropout",
    aten.feature_alpha_dropout.default: "feature_alpha_dropout",
}


class Dropout(nn.Module):
    """One of torch's dropouts, active in training only.

    Args:
        p: probability with which values are dropped.
        kind: name of the aten operator.
    """

    def __init__(self, p: float, kind: str = "dropout") -> None:
        super().__init__()
        self.p = p
        self.kind = kind

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of `input`, any shape, in training; give it back as it is otherwise."""
        if not self.training:
            return input
        dropped: Tensor = getattr(torch, self.kind)(input, self.p, True)
        return dropped

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}" if self.kind == "dropout" else f"p={self.p}, kind={self.kind!r}"


class DropoutProbability(nn.Module):
    """The probability for an operator that drops by itself: p in training, else 0."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self) -> float:
        """The probability to use now."""
        return self.p if self.training else 0.0

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}"


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers, other than by dropout."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return node.target not in DROPOUTS and _probability_index(node) is None


def raise_dropout(graph_module: fx.GraphModule, training: bool | None = None) -> None:
    """Turn every dropout of a graph into a module and drop those that never drop anything, in place.

    In a graph exported in eval all dropouts are inactive, and come back for training. In one exported in
    training an inactive one is off for good.

    Args:
        graph_module: whose graph it is.
        training: the mode it was exported in; None to tell from whether any dropout is active.
    """
    graph = graph_module.graph
    dropouts = [node for node in graph.nodes if node.op == "call_function" and node.target in DROPOUTS]
    if training is None:
        training = any(node.args[2] for node in dropouts)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in DROPOUTS:
            probability = float(node.args[1]) if node.args[2] or not training else 0.0
            replacement = node.args[0]
            if probability > 0.0:
                path = _insert(graph_module, node, Dropout(probability, DROPOUTS[node.target]))
                with graph.inserting_before(node):
                    replacement = graph.call_module(path, (node.args[0],))
                replacement.meta = dict(node.meta)
            node.replace_all_uses_with(replacement)
            graph.erase_node(node)
        else:
            _raise_probability(graph_module, node)


def _probability_index(node: fx.Node) -> int | None:
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    names = [argument.name for argument in node.target._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else None


def _raise_probability(graph_module: fx.GraphModule, node: fx.Node) -> None:
    index = _probability_index(node)
    if index is None:
        return
    given = node.args[index] if len(node.args) > index else node.kwargs.get("dropout_p", 0.0)
    if not isinstance(given, float) or given == 0.0:
        return
    path = _insert(graph_module, node, DropoutProbability(given))
    with graph_module.graph.inserting_before(node):
        probability = graph_module.graph.call_module(path)
    probability.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    if len(node.args) > index:
        node.update_arg(index, probability)
    else:
        node.update_kwarg("dropout_p", probability)


def _insert(graph_module: fx.GraphModule, node: fx.Node, module: nn.Module) -> str:
    """Add a module under the path that the node came from, under a free name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    owner, kind = stack[-1] if stack else ("", "")
    if isinstance(module, Dropout) and str(kind).endswith("Dropout"):
        return add_module(graph_module, owner, module)
    name = "dropout" if isinstance(module, Dropout) else "dropout_probability"
    return add_module(graph_module, f"{owner}.{name}" if owner else name, module)
