"""The graph of a prompt, and that of a token after it, in the making."""

from __future__ import annotations

import operator
import re
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from remixer.mixers import Mixer
from remixer.mixers.offset_bias import OffsetBias
from remixer.passes.errors import StreamError
from remixer.passes.other_sequence import OtherSequence, sizes_from
from remixer.passes.streamed_site import AtOnce, Step, lasting_entries
from remixer.rewrite.effects import remove_dead_code
from remixer.rewrite.program import Program, shape_of

aten = torch.ops.aten
_PLACES = (aten.arange.default, aten.arange.start, aten.arange.start_step)
# Operators that treat every token by itself, so that the last one can be picked out before them.
_BY_TOKEN = (aten.linear.default, aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.tanh.default, aten.to.dtype)


class Builder:
    """One of the two graphs, in the making."""

    def __init__(self, program: Program, tokens: sympy.Symbol, length: int, *, at_once: bool) -> None:
        self.source, self.tokens, self.length, self.at_once = program, tokens, length, at_once
        self.module = program.copy().graph_module
        self.graph = self.module.graph
        self.state: dict[str, Any] = {}  # what each entry is after the tokens
        self.before: dict[str, fx.Node] = {}  # what it was
        self.shared: dict[Any, str] = {}
        self.moving = _moving(self.graph)
        self.other = OtherSequence.of(self.source, tokens)

    def build(self) -> tuple[fx.GraphModule, list[str]]:
        """The graph module, and the names of its state."""
        self._keep_other()
        for node in list(self.graph.nodes):
            if "site" in node.meta and steps_through(node, self.tokens):
                self._site(node)
            elif node.op == "call_function":
                self._function(node)
        self._output()
        self.graph.set_codegen(CodeGen())
        self._drop_dead()
        module = fx.GraphModule(self.module, self.graph)
        return module.eval(), sorted(self.state)

    def _keep_other(self) -> None:
        """What is read of another sequence becomes part of the state, which a step hands on."""
        nodes = {node.name: node for node in self.graph.nodes}
        for each in self.other.kept:
            node, name = nodes[each], f"other.{each}"
            self.state[name] = node
            if not self.at_once:
                self.state[name] = past = self._past(name)
                past.meta = {"val": node.meta["val"]}
                node.replace_all_uses_with(past)
        if not self.at_once:
            here = [node for node in self.graph.find_nodes(op="placeholder") if node.name not in self.other.inputs]
            sizes_from(self.graph, self.other, here)

    def _site(self, node: fx.Node) -> None:
        mixer = self.module.get_submodule(str(node.target))
        assert isinstance(mixer, Mixer)
        operands = dict(node.kwargs)
        if isinstance(bias := operands.get("bias"), fx.Node):
            operands["bias"] = self._bias(node, bias)
        length = mixer.remembers(self.length)
        lasting, entries = lasting_entries(mixer, length)
        path = node.meta["site"].name
        own = {name: self._entry(path, name, mixer, length, operands.get("padding")) for name in entries}
        wrapped: nn.Module = AtOnce(mixer, length, entries)
        args: tuple[fx.Node, ...] = ()
        if not self.at_once:
            wrapped = Step(mixer, entries, lasting)
            args = tuple(self._past(own[name]) for name in entries)
        target = f"{node.target}_streamed"
        self.module.add_submodule(target, wrapped)
        with self.graph.inserting_before(node):
            call = self.graph.call_module(target, args, operands)
            call.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
            mixed, *after = (self.graph.call_function(operator.getitem, (call, i)) for i in range(len(entries) + 1))
        mixed.meta = {"val": node.meta["val"], "stands for": node.name}
        for name, new in zip(entries, after, strict=True):
            self.state.setdefault(own[name], new)  # of a shared entry, the first mixer's
        node.replace_all_uses_with(mixed)
        self.graph.erase_node(node)

    def _entry(self, path: str, name: str, mixer: Mixer, length: int, padding: Any) -> str:
        """The name of an entry in the state of the whole."""
        if name not in mixer.of_tokens:
            return f"{path}.{name}"
        return self.shared.setdefault((type(mixer), mixer.config, mixer.spec, length, padding, name), f"{path}.{name}")

    def _bias(self, node: fx.Node, bias: fx.Node) -> fx.Node:
        """The bias by offset of the greatest length, which is the same for all tokens."""
        owner = self.module.get_submodule(str(bias.target)) if bias.op == "call_module" else None
        if not isinstance(owner, OffsetBias):
            raise StreamError(
                f"cannot stream the attention at {node.meta['site'].name}: its bias is made by {bias.name}"
            )
        table = bias.kwargs.get("table")
        value = operator.attrgetter(str(table.target))(self.module) if isinstance(table, fx.Node) else None
        with torch.no_grad():
            made = owner(self.length, value)
        target = f"{bias.name}_streamed"
        self.module.register_buffer(target, made, persistent=False)
        with self.graph.inserting_before(node):
            return self.graph.get_attr(target)

    def _function(self, node: fx.Node) -> None:
        dim = token_dimension(node, self.tokens)
        if node.target in _PLACES and dim is not None:
            self._count()
            if not self.at_once:
                self._after(node, torch.add, node, self._past("position"))
        elif node.target is aten.slice.Tensor and dim is not None and node.args[0] not in self.moving:
            self._rows(node, dim)
        elif node.target is aten.cumsum.default and dim is not None:
            self._sum(node, dim)

    def _count(self) -> None:
        """The number of tokens so far."""
        if "position" in self.state:
            return
        placeholders = self.graph.find_nodes(op="placeholder")
        dims = ((node, token_dimension(node, self.tokens)) for node in placeholders)
        like, dim = next(each for each in dims if each[1] is not None)
        before = None if self.at_once else self._past("position")
        with self.graph.inserting_after(self.graph.find_nodes(op="placeholder")[-1]):
            self.state["position"] = self.graph.call_function(counted, (like, dim, before))

    def _rows(self, node: fx.Node, dim: int) -> None:
        """Rows of a table that is as long as the longest sequence."""
        self._count()
        if self.at_once:
            return
        table, _, start, end, *step = [*node.args, None, None][: len(node.args)]
        if step not in ([], [1]):
            return
        with self.graph.inserting_before(node):
            rows = self.graph.call_function(rows_of, (table, dim, start or 0, end, self._past("position")))
        rows.meta = {**node.meta, "stands for": node.name}
        node.replace_all_uses_with(rows)
        self.graph.erase_node(node)

    def _sum(self, node: fx.Node, dim: int) -> None:
        """A running sum over the tokens."""
        name = f"sum.{node.name}"
        if not self.at_once:
            node = self._after(node, torch.add, node, self._past(name))
        with self.graph.inserting_after(node):
            self.state[name] = self.graph.call_function(last_of, (node, dim))

    def _past(self, name: str) -> fx.Node:
        """The input that gives an entry of the state."""
        if name not in self.before:
            placeholders = self.graph.find_nodes(op="placeholder")
            with self.graph.inserting_after(placeholders[-1]):
                self.before[name] = self.graph.placeholder(re.sub(r"\W", "_", name))
        return self.before[name]

    def _after(self, node: fx.Node, function: Any, *args: Any) -> fx.Node:
        """A function of a node, in the node's place for all that read it."""
        with self.graph.inserting_after(max(each for each in (node, *args) if isinstance(each, fx.Node))):
            new = self.graph.call_function(function, args)
        new.meta = {**node.meta, "stands for": node.name}
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return new

    def _output(self) -> None:
        """The tensors that the model gives, then the state; of a prompt, its last token's."""
        output = self.graph.output_node()
        leaves = [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]
        if self.at_once:
            leaves = [self._last_token(leaf, output) for leaf in leaves]
        output.args = ((*leaves, *(self.state[name] for name in sorted(self.state))),)

    def _last_token(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """The last token of an output, picked out before what treats every token by itself, such as a large head."""
        dim = token_dimension(node, self.tokens)
        if dim is None:
            return node
        above, below = node, reader
        while above.target in _BY_TOKEN and len(above.users) == 1:
            operands = [each for each in above.all_input_nodes if token_dimension(each, self.tokens) is not None]
            if len(operands) != 1 or token_dimension(operands[0], self.tokens) != dim:
                break
            above, below = operands[0], above
        with self.graph.inserting_after(above):
            last = self.graph.call_function(last_of, (above, dim))
        if below is reader:
            return last
        below.replace_input_with(above, last)
        return node

    def _drop_dead(self) -> None:
        """Nodes that nothing reads any more, and inputs that are no tensors."""
        remove_dead_code(self.graph)
        gone = () if self.at_once else self.other.inputs
        tensors = {node.name for node in inputs_of(self.source) if node.name not in gone}
        for node in self.graph.find_nodes(op="placeholder"):
            if node not in self.before.values() and node.name not in tensors:
                if node.users:
                    told = "is read by its tokens anew" if node.name in gone else "is no tensor"
                    raise StreamError(f"cannot stream: input {node.target!r} {told}")
                self.graph.erase_node(node)
        last = [node for node in self.graph.find_nodes(op="placeholder") if node not in self.before.values()][-1]
        for name in sorted(self.before, reverse=True):
            last.append(self.before[name])


def steps_through(node: fx.Node, tokens: sympy.Symbol) -> bool:
    """Whether a site's keys are those of the tokens: then it has a state. All others are of another sequence."""
    value = node.kwargs.get("value")
    return not isinstance(value, fx.Node) or token_dimension(value, tokens) is not None


def inputs_of(program: Program) -> list[fx.Node]:
    """The placeholders that are tensors."""
    placeholders = program.graph.find_nodes(op="placeholder")
    return [node for node in placeholders if isinstance(node.meta.get("val"), Tensor)]


def token_dimension(node: fx.Node, tokens: sympy.Symbol) -> int | None:
    """Which dimension of a node's value runs over the tokens, or None."""
    shape = shape_of(node) or ()
    return next((dim for dim, size in enumerate(shape) if size == tokens), None)


def _moving(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values, not only their sizes, depend on the inputs."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        size = isinstance(node.meta.get("val"), (torch.SymInt, int))
        if node.op == "placeholder" or (not size and any(each in found for each in node.all_input_nodes)):
            found.add(node)
    return found


def counted(like: Tensor, dim: int, before: Tensor | None) -> Tensor:
    """(1,), how many tokens there have been."""
    count = torch.arange(like.shape[dim], device=like.device)[-1:] + 1
    return count if before is None else count + before


def rows_of(table: Tensor, dim: int, start: int, end: int, position: Tensor) -> Tensor:
    """The rows start..end-1 of a table, counted from a position."""
    return table.index_select(dim, torch.arange(start, end, device=table.device) + position)


def last_of(tokens: Tensor, dim: int) -> Tensor:
    """The last token."""
    return tokens.narrow(dim, tokens.shape[dim] - 1, 1)
