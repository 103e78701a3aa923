"""Whether a program whose tokens are spread gives what the whole one gives: all processes are played in this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from remixer.mixers import Softmax
from remixer.mixers.distributed.layout import in_order, part_size, places_of
from remixer.passes.errors import ShardError
from remixer.passes.shard_sequence import LENGTH, SPREAD
from remixer.passes.sharded_sites import lengths_in
from remixer.passes.spread_tokens import (
    HeadsMixer,
    OwnMixer,
    SpreadAttention,
    WholeMixer,
    own_tokens,
    part_of,
    sum_of,
    token_of,
    whole_of,
)
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.elsewhere import example_at, is_mask, sizes_of_example
from remixer.rewrite.inputs import Call, tensors_in
from remixer.rewrite.match import module_path
from remixer.rewrite.program import Program
from remixer.rewrite.tolerance import error_and_limit

# Of the table's tolerance: products of other sizes are summed in another order, and a whole model adds that up.
MARGIN = 10.0
SPREADING = (SpreadAttention, HeadsMixer, OwnMixer, WholeMixer)
TRIALS = ((2, 12), (3, 7), (4, 3))  # processes, and tokens: whole parts, odd ones, fewer tokens than processes


def prove_sharding(program: Program, sharded: Program, trials: Sequence[tuple[int, int]] = TRIALS) -> float:
    """Run both on examples, also with padding in front.

    Args:
        program: before tokens were spread.
        sharded: after.
        trials: processes and tokens.

    Returns:
        The largest difference.

    Raises:
        ShardError: they differ; it says in which node first.
    """
    worst, tried = 0.0, 0
    for size, tokens in trials:
        for padded in (False, True):
            call = _example(program, tokens, padded=padded)
            try:
                expected = tensors_in(run(program.graph_module, call))
            except NotRunError:
                continue  # beyond what the model takes
            played = Played(sharded, size, _counts(program, call))
            with torch.no_grad():
                outputs = played.run(call)
            exist = {leaf.shape: leaf.bool() for leaf in pytree.tree_leaves(call) if is_mask(leaf) and leaf.dim() == 2}
            for rank, got in enumerate(outputs):
                for one, other in zip(got, expected, strict=True):
                    there = exist.get(other.shape[:2], ...)
                    error, limit = error_and_limit(one[there], other[there])
                    if not error <= MARGIN * limit:
                        raise ShardError(
                            f"spread over {size} processes the model gives something else than in one, by {error:.2g} "
                            f"in process {rank}, for {tokens} tokens. {_first(program, played, call)}"
                        )
                    worst = max(worst, error)
            tried += 1
    if not tried:
        raise ShardError("the model itself runs on none of the inputs that its sharded form was to be tried on")
    return worst


class Played:
    """All processes, node by node, in this one.

    Args:
        program: whose tokens are spread.
        size: how many processes.
        counts: how many tokens there are, by the length's name.
    """

    def __init__(self, program: Program, size: int, counts: dict[sympy.Expr, int]) -> None:
        self.program, self.size, self.counts = program, size, counts
        self.each = [fx.Interpreter(program.graph_module) for _ in range(size)]
        self.layout: Any = "contiguous"
        for module in program.graph_module.modules():
            if isinstance(module, SPREADING):
                self.layout = module.layout

    def run(self, call: Call) -> list[list[Tensor]]:
        """What every process gives; outputs that each has a part of are put together."""
        leaves = iter(pytree.tree_leaves(call))
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                value = next(leaves)
                values = [value] * self.size
            elif node.op == "output":
                return [self._outputs(node) for _ in self.each]
            else:
                given = [one.fetch_args_kwargs_from_env(node) for one in self.each]
                values = self._together(node, given) or [
                    getattr(one, node.op)(node.target, *both) for one, both in zip(self.each, given, strict=True)
                ]
            for one, value in zip(self.each, values, strict=True):
                one.env[node] = value
        raise AssertionError("a graph without an output")

    def whole(self, node: fx.Node) -> Tensor | None:
        """A node's value with all tokens, or None if it is no tensor, or none that is spread."""
        dim, value = node.meta.get(SPREAD), self.each[0].env.get(node)
        if dim is None or not isinstance(value, Tensor):
            return None
        return self._joined([one.env[node] for one in self.each], dim, self.counts[node.meta[LENGTH]])

    def _outputs(self, node: fx.Node) -> list[Tensor]:
        found = []
        for leaf in pytree.tree_leaves(node.args):
            if isinstance(leaf, fx.Node) and isinstance(value := self.each[0].env[leaf], Tensor):
                whole = self.whole(leaf)
                found.append(value if whole is None else whole)
        return found

    def _places(self, rank: int, tokens: int) -> Tensor:
        part = part_size(tokens, self.size, self.layout)
        return places_of(rank, part, self.size, self.layout).clamp(max=tokens - 1)

    def _cut(self, whole: Tensor, dim: int, tokens: int) -> list[Tensor]:
        rows = whole.unflatten(dim, (-1, tokens))
        cut = (rows.index_select(dim + 1, self._places(rank, tokens)) for rank in range(self.size))
        return [each.flatten(dim, dim + 1) for each in cut]

    def _joined(self, parts: Sequence[Tensor], dim: int, tokens: int) -> Tensor:
        own = part_size(tokens, self.size, self.layout)
        rows = torch.cat([part.unflatten(dim, (-1, own)) for part in parts], dim + 1)
        return in_order(rows, dim + 1, tokens, self.size, self.layout).flatten(dim, dim + 1)

    def _together(self, node: fx.Node, given: list[tuple[Any, Any]]) -> list[Any] | None:
        """What processes do together, or None for what each does by itself."""
        args = [each[0] for each in given]
        if node.target is part_of:
            return [self._cut(whole, dim, tokens)[rank] for rank, (whole, dim, tokens, *_) in enumerate(args)]
        if node.target is own_tokens:
            return [part_size(args[0][0], self.size, self.layout)] * self.size
        if node.target in (whole_of, token_of, sum_of):
            dim, tokens = args[0][1], args[0][-3]
            whole = self._joined([each[0] for each in args], dim, tokens)
            if node.target is token_of:
                index, keepdim = args[0][2:4]
                whole = whole.narrow(dim, index % tokens, 1)
                whole = whole if keepdim else whole.squeeze(dim)
            elif node.target is sum_of:
                others, keepdim, mean = args[0][2:5]
                whole = (whole.mean if mean else whole.sum)([dim, *others], keepdim)
            return [whole] * self.size
        if node.op != "call_module":
            return None
        module = self.program.graph_module.get_submodule(str(node.target))
        return self._mixed(module, [kwargs for _, kwargs in given]) if isinstance(module, SPREADING) else None

    def _mixed(self, module: Any, given: list[dict[str, Any]]) -> list[Tensor]:
        """What a mixer gives each process, of all tokens."""
        mixer = Softmax(module.spec) if isinstance(module, SpreadAttention) else module.mixer
        operands = dict(given[0])
        tokens, keys = operands.pop("tokens"), operands.pop("keys")
        along = {"query": (2, tokens), "key": (2, keys), "value": (2, keys), "padding": (1, keys), "source": (1, keys)}
        if isinstance(module, OwnMixer):
            del along["padding"]
        if module.by_row:
            along["bias"] = (operands["bias"].dim() - 2, tokens)
        for name in operands.keys() & along.keys():
            operands[name] = self._joined([kwargs[name] for kwargs in given], *along[name])
        return list(self._cut(mixer.eval()(**operands), 2, tokens))


def _example(program: Program, tokens: int, *, padded: bool) -> Call:
    sizes = dict.fromkeys(sizes_of_example(program), 2)
    for place, symbol in enumerate(sorted(sizes.keys() - program.batch, key=str)):
        sizes[symbol] = tokens + 3 * place  # no length like another

    def mask(own: Tensor) -> Tensor:
        made = torch.ones_like(own)
        if padded:
            made[0, ..., : tokens // 3] = 0
        return made

    return example_at(program, sizes, mask)


def _counts(program: Program, call: Call) -> dict[sympy.Expr, int]:
    """How many tokens a call has, by the length's name."""
    values = {}
    for node, leaf in zip(program.graph.find_nodes(op="placeholder"), pytree.tree_leaves(call), strict=True):
        if isinstance(leaf, Tensor) and isinstance(node.meta.get("val"), Tensor):
            for symbol, number in zip(node.meta["val"].shape, leaf.shape, strict=True):
                if isinstance(symbol, torch.SymInt):
                    values[symbol.node.expr] = number
    return {length: int(length.xreplace(values)) for length in lengths_in(program)}


def _first(program: Program, played: Played, call: Call) -> str:
    """The sentence on the first node that differs."""
    wide = fx.Interpreter(program.graph_module, garbage_collect_values=False)
    with torch.no_grad():
        wide.run(*pytree.tree_leaves(call))
    names = {node.meta.get("stands for", node.name): node for node in played.program.graph.nodes}
    for node in program.graph.nodes:
        here = names.get(node.name)
        whole = None if here is None else played.whole(here)
        if whole is None or not whole.is_floating_point():
            continue
        error, limit = error_and_limit(whole, wide.env[node])
        if not error <= MARGIN * limit:
            return f"The first node that differs is {node.name}, {node.target} at {module_path(node) or 'the top'}"
    return "No single node differs by as much"
