"""What each node of a program costs: the work, and the weights, that a pipeline's stages are balanced by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from remixer.rewrite.elsewhere import Sizes, example_at, sizes_of_example
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program


def flops_of(program: Program, tokens: int) -> dict[fx.Node, int]:
    """Floating-point operations of products and attentions, node by node, as torch.utils.flop_counter counts them.

    Nothing is computed: the program runs on shapes alone. Where it can't, its own example is run.

    Args:
        program: the program.
        tokens: in one row, as far as the program takes so many.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def shape_only(leaf: Any) -> Any:
        return fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

    call: Call = pytree.tree_map(shape_only, example_at(program, sizes_for(program, 1, tokens)))
    counting = _Counting(program.graph_module)
    with torch.no_grad():
        try:
            with fake:
                counting.run(*pytree.tree_leaves(call))
        except RuntimeError:  # a size depends on values
            counting.run(*pytree.tree_leaves(example_at(program, {})))
    return counting.found


def sizes_for(program: Program, rows: int, tokens: int) -> Sizes:
    """So many rows, and tokens in each, within the limits of a program."""
    sizes: Sizes = {}
    for symbol in sizes_of_example(program):
        smallest, largest = program.limits.get(symbol, (1, None))
        wanted = rows if symbol in program.batch else max(smallest, tokens)
        sizes[symbol] = wanted if largest is None else min(wanted, largest)
    return sizes


def weights_at(module: nn.Module, node: fx.Node) -> list[Tensor]:
    """The parameters and buffers that a node reads by itself, not through other nodes."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        found = getattr(module.get_submodule(owner), name)
        return [found] if isinstance(found, Tensor) else []
    if node.op == "call_module":
        inner = module.get_submodule(str(node.target))
        return [*inner.parameters(), *inner.buffers()]
    return []


class _Counting(fx.Interpreter):
    """Runs a graph and writes down what each node computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Count one node."""
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.found[n] = counter.get_total_flops()
        return value
