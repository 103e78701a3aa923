"""Pass: every process runs the whole graph on its own part of the tokens.

What is made of token ids, masks and positions alone stays whole on every process: it is small. Tokens are spread where
they get a width: where ids are looked up in a table, and where hidden states come in. From there on every operator that
treats tokens by themselves has a part, and what it meets of a whole sequence, such as a rotary table, is cut. Mixers
talk. An operator that needs all tokens gets them gathered, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from remixer.mixers.distributed.cost import Scheme
from remixer.mixers.distributed.long_short import refusal_of_halo
from remixer.passes.base import Pass
from remixer.passes.errors import ShardError
from remixer.passes.sharded_operators import rows_in, spread_dim, takes_all
from remixer.passes.sharded_sites import layout_for, lengths_in, lengths_of, spread_mixer
from remixer.passes.sites import Site, sites_of
from remixer.passes.spread_tokens import own_tokens, part_of, sum_of, token_of, whole_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss, module_path
from remixer.rewrite.program import Program, expression, shape_of

aten = torch.ops.aten
SPREAD = "spread"  # in a node's meta: along which dimension of its value this process has a part
LENGTH = "length"  # and of how many tokens
_WIDE = (aten.embedding.default,)
_SUMS = {aten.sum.dim_IntList: False, aten.mean.dim: True}


@dataclass(frozen=True)
class ShardSequence(Pass):
    """Spread the tokens of a program over processes.

    Attributes:
        scheme: of every attention that is "distributed" or "softmax"; other mixers run on whole sequences.
        mesh_dim: names the processes.
        strict: raise where an operator needs all tokens, rather than gather them.
        gather: whether outputs come whole; if not, each process gives its part of those that have tokens.
        ranks: how many processes there will be, if that is known: other mixers are then spread by their heads, where
            those know nothing of one another.
    """

    scheme: Scheme = "all_gather"
    mesh_dim: str = "sequence"
    strict: bool = False
    gather: bool = True
    ranks: int = 0

    def requires(self, program: Program) -> None:
        """See Pass.requires.

        Raises:
            ShardError: the program has no tokens in common that could be spread.
        """
        lengths_in(program)

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        _Sharding(self, editor).run()


class _Sharding:
    """One run of the pass."""

    def __init__(self, options: ShardSequence, editor: Editor) -> None:
        self.options, self.editor = options, editor
        self.lengths = lengths_in(editor.program)
        self.where = (options.mesh_dim, layout_for(editor.program, options.scheme))
        self.dims: dict[fx.Node, int] = {}
        self.length: dict[fx.Node, sympy.Expr] = {}
        self.parts: dict[tuple[fx.Node, int], fx.Node] = {}
        self.wholes: dict[fx.Node, fx.Node] = {}
        self.sites = {site.node: site for site in sites_of(editor.program)}
        self.counts: dict[sympy.Expr, fx.Node] = {}

    def run(self) -> None:
        first = self._after_inputs()
        for node in self.editor.graph.find_nodes(op="placeholder"):
            if first < node:
                first.prepend(node)  # so that counts, which are made of inputs, stand before all that needs them
        for node in list(self.editor.graph.nodes):
            if node in self.sites:
                self._site(self.sites[node])
            elif node.op == "output":
                self._output(node)
            elif node.op == "placeholder":
                self._placeholder(node)
            elif node.op in ("call_function", "call_module"):
                self._node(node)
        self.editor.sweep()

    def _placeholder(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 2:
            found = self._tokens_in(node)
            if found is not None:
                part = self._part(node, *found, self._after_inputs())
                for user in list(node.users):
                    if user is not part and user.target is not aten.sym_size.int:
                        self.editor.read(user, node, part)

    def _node(self, node: fx.Node) -> None:
        if node.target is aten.sym_size.int:
            operand, dim = node.args
            if isinstance(operand, fx.Node) and self.dims.get(operand) == dim:
                self.editor.read(node, operand, self._whole(operand, node))
            return
        if not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            return
        if node.target in _WIDE and isinstance(ids := node.args[1], fx.Node) and ids not in self.dims:
            found = self._tokens_in(ids)
            if found is not None:
                self.editor.read(node, ids, self._part(ids, *found, node))
        spread = [each for each in node.all_input_nodes if each in self.dims]
        if not spread:
            return
        length = self.length[spread[0]]
        several = any(self.length[each] != length for each in spread)
        dim = None if several else spread_dim(node, self.dims, length)
        if dim is None:
            self._mixing(node, spread)
            return
        self._mark(node, dim, length)
        self._cut_operands(node, dim, length)
        self._local_sizes(node, length)

    def _mark(self, node: fx.Node, dim: int, length: sympy.Expr) -> None:
        """A node's value has a part of so many tokens, along a dimension."""
        self.dims[node], self.length[node] = dim, length
        node.meta |= {SPREAD: dim, LENGTH: length}

    def _tokens_in(self, node: fx.Node) -> tuple[int, sympy.Expr] | None:
        """The only dimension of a value that runs over tokens, and how many."""
        found = [(dim, size) for dim, size in enumerate(shape_of(node) or ()) if size in self.lengths]
        return found[0] if len(found) == 1 else None

    def _cut_operands(self, node: fx.Node, dim: int, length: sympy.Expr) -> None:
        """Of whole operands that are lined up with spread ones, only the own part counts."""
        out = len(shape_of(node) or ())
        aligned = node.op == "call_module" or torch.Tag.pointwise in getattr(node.target, "tags", ())
        joined = node.target in (aten.cat.default, aten.stack.default)
        product = node.target in (aten.matmul.default, aten.bmm.default)
        for operand in node.all_input_nodes:
            shape = shape_of(operand)
            if operand in self.dims or shape is None or not (aligned or joined or product):
                continue
            place = dim - (out - len(shape))
            if joined:
                place = self.dims[next(each for each in node.all_input_nodes if each in self.dims)]
            if product and place >= len(shape) - 2:
                continue
            if 0 <= place < len(shape) and rows_in(shape[place], length) is not None:
                self.editor.read(node, operand, self._part(operand, place, length, node))

    def _local_sizes(self, node: fx.Node, length: sympy.Expr) -> None:
        """Sizes that are arguments, such as those of a view, count the own tokens only."""
        for size in node.all_input_nodes:
            value = size.meta.get("val")
            if isinstance(value, torch.SymInt) and expression(value).free_symbols & length.free_symbols:
                self.editor.read(node, size, self._local_size(size, length, node))

    def _local_size(self, size: fx.Node, length: sympy.Expr, before: fx.Node) -> fx.Node:
        """A size of the whole sequence as one of the part."""
        found = expression(size.meta["val"])
        if found == length:
            return self.editor.call(own_tokens, self._count(length), *self.where, before=before, fake=size.meta["val"])
        if size.op != "call_function" or size.target is aten.sym_size.int:
            raise ShardError(f"cannot shard the sequence: {before.name} takes a size of {found}, made of the tokens'")
        args = map_arg(
            size.args,
            lambda each: (
                self._local_size(each, length, before)
                if expression(each.meta["val"]).free_symbols & length.free_symbols
                else each
            ),
        )
        return self.editor.call(size.target, *args, before=before, fake=size.meta["val"])  # type: ignore[arg-type]

    def _mixing(self, node: fx.Node, spread: list[fx.Node]) -> None:
        """An operator that needs all tokens: a sum of them, one of them, or it gets them all."""
        operand = spread[0]
        dim = self.dims[operand]
        simple = len(spread) == 1 and (shape_of(operand) or ())[dim] == self.length[operand] and operand is node.args[0]
        if simple and node.target is aten.select.int and isinstance(node.args[2], int):
            along: Any = node.args[1]
            if along % self._ndim(operand) == dim:
                self._instead(node, token_of, operand, dim, node.args[2], False)
                return
        if simple and node.target is aten.slice.Tensor and self._one_token(node, dim) is not None:
            self._instead(node, token_of, operand, dim, self._one_token(node, dim), True)
            return
        if simple and node.target in _SUMS and not node.kwargs and len(node.args) > 1:
            dims: Any = node.args[1]
            summed = [each % self._ndim(operand) for each in dims]
            if dim in summed:
                keepdim = bool(node.args[2]) if len(node.args) > 2 else False
                others = [each for each in summed if each != dim]
                self._instead(node, sum_of, operand, dim, others, keepdim, _SUMS[node.target])
                return
        if node.target is not aten.slice.Tensor or not takes_all(node):
            told = f"{node.target} needs all tokens of {', '.join(each.name for each in spread)}"
            if self.options.strict:
                place = module_path(node) or "the top"
                raise ShardError(f"cannot shard the sequence at {place}: {told}. Leave strict=True out to gather them")
            self.editor.miss(Miss(f"{told}: they are gathered", node, "ShardSequence", module_path(node)))
        for each in spread:
            self.editor.read(node, each, self._whole(each, node))

    def _one_token(self, node: fx.Node, dim: int) -> int | None:
        """Which token a slice takes, if it takes one."""
        given: list[Any] = [*node.args[1:], None, None, None]
        along, start, end = given[0] or 0, given[1] or 0, given[2]
        if along % self._ndim(node) != dim or len(node.args) > 4 or not isinstance(start, int):
            return None
        last = start == -1 and (end is None or not isinstance(end, int) or end >= 2**62)
        return start if last or (isinstance(end, int) and end == start + 1 and start >= 0) else None

    def _ndim(self, node: fx.Node) -> int:
        return len(shape_of(node) or ())

    def _instead(self, node: fx.Node, function: Any, operand: fx.Node, *args: Any) -> None:
        count = self._count(self.length[operand])
        new = self.editor.call(function, operand, *args, count, *self.where, before=node, fake=node.meta["val"])
        self.editor.replace(node, new)

    def _site(self, site: Site) -> None:
        node, mixer = site.node, site.mixer
        T, S = lengths_of(site)
        by_halo = refusal_of_halo(mixer) is None
        along = {"query": (2, T), "key": (2, S), "value": (2, S), "source": (1, S)}
        if not by_halo:  # which looks at the padding of all tokens: a byte each
            along["padding"] = (1, S)
        operands = dict(node.kwargs)
        bias = site.operand("bias")
        by_row = bias is not None and mixer.spec.bias == "dense" and (shape_of(bias) or ())[-2] == T
        if bias is not None and by_row:
            along["bias"] = (self._ndim(bias) - 2, T)
        for name, each in operands.items():
            if isinstance(each, fx.Node):
                if name not in along:
                    operands[name] = self._whole(each, node) if each in self.dims else each
                elif each not in self.dims:
                    operands[name] = self._part(each, *along[name], node)
                elif (self.dims[each], self.length[each]) != along[name]:
                    operands[name] = self._part(self._whole(each, node), *along[name], node)
        mesh_dim, layout = self.where
        spread, told = spread_mixer(site, self.options.scheme, layout, mesh_dim, self.options.ranks, by_row=by_row)
        if told:
            self.editor.miss(Miss(told, node, "ShardSequence", site.name))
        path = self.editor.register(f"{node.target}_spread", spread.eval())
        operands |= {"tokens": self._count(T), "keys": self._count(S)}
        new = self.editor.call_module(path, operands, before=node, fake=node.meta["val"])
        new.meta["stands for"] = node.name
        self._mark(new, 2, T)
        self.editor.replace(node, new)

    def _output(self, node: fx.Node) -> None:
        if self.options.gather:
            for each in node.all_input_nodes:
                if each in self.dims:
                    self.editor.read(node, each, self._whole(each, node))

    def _part(self, whole: fx.Node, dim: int, length: sympy.Expr, before: fx.Node) -> fx.Node:
        if (whole, dim) not in self.parts or self.parts[whole, dim] > before:
            count, fake = self._count(length), whole.meta["val"]
            part = self.editor.call(part_of, whole, dim, count, *self.where, before=before, fake=fake)
            self.parts[whole, dim] = part
            self._mark(part, dim, length)
        return self.parts[whole, dim]

    def _whole(self, part: fx.Node, before: fx.Node) -> fx.Node:
        if part not in self.wholes or self.wholes[part] > before:
            dim, count, fake = self.dims[part], self._count(self.length[part]), part.meta["val"]
            self.wholes[part] = self.editor.call(whole_of, part, dim, count, *self.where, before=before, fake=fake)
        return self.wholes[part]

    def _after_inputs(self) -> fx.Node:
        return next(each for each in self.editor.graph.nodes if each.op not in ("placeholder", "get_attr"))

    def _count(self, length: sympy.Expr) -> fx.Node:
        """How many tokens there are, from an input."""
        if length not in self.counts:
            self.counts[length] = self._made_of_inputs(length, self._after_inputs())
        return self.counts[length]

    def _made_of_inputs(self, length: sympy.Expr, before: fx.Node) -> fx.Node:
        for node in self.editor.graph.find_nodes(op="placeholder"):
            for dim, size in enumerate(shape_of(node) or ()):
                if size == length:
                    value = node.meta["val"].shape[dim]
                    return self.editor.call(aten.sym_size.int, node, dim, before=before, fake=value)
        raise ShardError(f"cannot shard the sequence: no input has a size of {length}, the tokens'")
