"""The only way to change a program: every edit is made here, and written down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

from remixer.rewrite.effects import remove_dead_code
from remixer.rewrite.errors import PassError
from remixer.rewrite.match import Miss, module_path, source_line
from remixer.rewrite.modules import add_module, keep_tied, weights
from remixer.rewrite.program import Program, expression, fake_mode


@dataclass(frozen=True)
class Edit:
    """One change: "add", "replace", "erase", "sweep" or "register", and the name of what was changed."""

    kind: str
    name: str


@dataclass(frozen=True)
class Rewrite:
    """One application of a rule: what it made of which node, and where that came from."""

    rule: str
    site: str
    source: str
    removed: str
    added: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """Where a new node came from: the rule or pass that added it, the module path and the source line."""

    rule: str
    site: str
    source: str


class Editor:
    """Edits a program that nobody else holds, and records each edit.

    Args:
        program: a private copy.
        author: name of the pass, for the origin of new nodes outside of a rule.
    """

    def __init__(self, program: Program, author: str = "") -> None:
        self.program = program
        self.graph_module = program.graph_module
        self.graph = program.graph
        self.edits: list[Edit] = []
        self.rewrites: list[Rewrite] = []
        self.misses: list[Miss] = []
        self._author = author
        self._origin: Origin | None = None
        self._added: list[str] = []

    @contextlib.contextmanager
    def rewriting(self, rule: str, node: fx.Node, site: str = "") -> Iterator[None]:
        """Whatever is added inside belongs to one rewrite by a rule, of a node."""
        self._origin = Origin(rule, site or module_path(node), source_line(node))
        self._added = []
        name = node.name
        try:
            yield
            self.rewrites.append(Rewrite(rule, self._origin.site, self._origin.source, name, tuple(self._added)))
        finally:
            self._origin = None
            self._added = []

    def miss(self, miss: Miss) -> None:
        """Record why something was left as it is."""
        self.misses.append(miss)

    def call(self, target: Callable[..., Any], *args: Any, before: fx.Node, fake: Any = None, **kwargs: Any) -> fx.Node:
        """Add a call of an operator in front of a node.

        Args:
            target: the operator.
            args: its operands.
            before: the node to stand in front of, and whose place in the source the new one shares.
            fake: the new node's value as a fake tensor; computed from the operands' if not given.
            kwargs: its operands by name.
        """
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        return self._enter(node, before, self._fake(target, args, kwargs) if fake is None else fake)

    def call_module(
        self,
        path: str,
        operands: Mapping[str, Any],
        *,
        before: fx.Node,
        fake: Any,
    ) -> fx.Node:
        """Add a call of a registered module in front of a node.

        Args:
            path: of the module.
            operands: its arguments by name.
            before: the node to stand in front of, and whose place in the source the new one shares.
            fake: the new node's value as a fake tensor.
        """
        with self.graph.inserting_before(before):
            node = self.graph.call_module(path, (), dict(operands))
        return self._enter(node, before, fake)

    def register(self, path: str, module: nn.Module) -> str:
        """Add a module to the program under a path, or under the first free number behind it."""
        path = add_module(self.graph_module, path, module)
        self.edits.append(Edit("register", path))
        return path

    def add_buffer(self, path: str, tensor: torch.Tensor) -> str:
        """Add a buffer that isn't saved, under a path, or under the first free number behind it; gives its path."""
        path, number = path, 0
        while hasattr(self.graph_module, free := f"{path}_{number}" if number else path):
            number += 1
        self.graph_module.register_buffer(free, tensor, persistent=False)
        self.edits.append(Edit("register", free))
        return free

    def get(self, path: str, *, before: fx.Node) -> fx.Node:
        """Add a node in front of another that gives a parameter or buffer of the program."""
        with self.graph.inserting_before(before):
            node = self.graph.get_attr(path)
        held = attrgetter(path)(self.graph_module)
        return self._enter(node, before, _faked(held, self.graph))

    def set_weight(self, path: str, tensor: torch.Tensor) -> None:
        """Give a parameter or buffer another value, maybe of another shape, under all names that it has.

        The recorded values of nodes are computed anew as far as the shape reaches.

        Raises:
            PassError: a node can't take the new shape.
        """
        old = attrgetter(path)(self.graph_module)
        names = [name for name, held in weights(self.graph_module).items() if held is old]
        new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(self.graph_module.get_submodule(owner), leaf, new)
        changed = {node for node in self.graph.find_nodes(op="get_attr") if node.target in names}
        for node in changed:
            node.meta["val"] = _faked(new, self.graph)
        for node in self.graph.nodes:
            if node.op == "call_function" and any(one in changed for one in node.all_input_nodes):
                self._recompute(node, changed)
        self.edits.append(Edit("replace", path))

    def _recompute(self, node: fx.Node, changed: set[fx.Node]) -> None:
        before = node.meta.get("val")
        try:
            now = self._fake(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PassError(f"{node.name} can't take a weight of another shape: {told}") from error
        if not isinstance(now, torch.Tensor) or not isinstance(before, torch.Tensor):
            return
        if tuple(map(expression, now.shape)) != tuple(map(expression, before.shape)):
            node.meta["val"] = now
            changed.add(node)

    def set_limits(self, limits: Mapping[sympy.Symbol, tuple[int, int | None]], extended: Sequence[str]) -> None:
        """Set how large the program's symbols may be, and the sentences that say why."""
        known = replace(self.program, limits=dict(limits), extended=tuple(extended))
        self.program = known.with_graph_module(self.graph_module)
        self.edits.append(Edit("replace", "limits"))

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all readers of one node read another, but for the nodes that the present rewrite added.

        Raises:
            PassError: the other has another dtype or shape.
        """
        if new is old:
            return
        if not _alike(old, new):
            raise PassError(f"{new.name}, {_described(new)}, can't stand for {old.name}, {_described(old)}")
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user.name not in self._added)
        self.edits.append(Edit("replace", old.name))

    def read(self, reader: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Let one reader of a node read another."""
        reader.replace_input_with(old, new)
        self.edits.append(Edit("replace", reader.name))

    def set_operands(self, node: fx.Node, operands: Mapping[str, Any]) -> None:
        """Give a node other named operands."""
        node.kwargs = dict(operands)
        self.edits.append(Edit("replace", node.name))

    def erase(self, node: fx.Node) -> None:
        """Remove a node that nobody reads."""
        self.edits.append(Edit("erase", node.name))
        self.graph.erase_node(node)

    def sweep(self) -> int:
        """Remove all dead nodes, and the modules and weights that only they used.

        Returns:
            How many nodes went.
        """
        removed = remove_dead_code(self.graph)
        self.edits += [Edit("sweep", "nodes")] * removed
        before = weights(self.graph_module)
        self.graph_module.delete_all_unused_submodules()
        used = {str(node.target) for node in self.graph.nodes if node.op in ("get_attr", "call_module")}
        for name in weights(self.graph_module):
            parts = name.split(".")
            if not any(".".join(parts[:end]) in used for end in range(1, len(parts) + 1)):
                delattr(self.graph_module.get_submodule(".".join(parts[:-1])), parts[-1])
        keep_tied(before, self.graph_module)
        gone = before.keys() - weights(self.graph_module).keys()
        self.edits += [Edit("sweep", name) for name in sorted(gone)]
        return removed

    def _enter(self, node: fx.Node, place: fx.Node, fake: Any) -> fx.Node:
        for key in ("nn_module_stack", "stack_trace"):
            if key in place.meta:
                node.meta[key] = place.meta[key]
        node.meta["val"] = fake
        node.meta["origin"] = self._origin or Origin(self._author, module_path(place), source_line(place))
        self.edits.append(Edit("add", node.name))
        self._added.append(node.name)
        return node

    def _fake(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        args, kwargs = map_arg((args, kwargs), lambda node: node.meta["val"])
        with fake_mode(self.graph):
            return target(*args, **kwargs)


def _alike(old: fx.Node, new: fx.Node) -> bool:
    """Whether two recorded values have the same dtype and, as far as they are fixed, the same sizes."""
    before, after = old.meta.get("val"), new.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return True
    if before.dtype != after.dtype or before.dim() != after.dim():
        return False
    sizes = zip(before.shape, after.shape, strict=True)
    return all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))


def _faked(tensor: torch.Tensor, graph: fx.Graph) -> torch.Tensor:
    mode = fake_mode(graph)
    return mode.from_tensor(tensor, static_shapes=True) if isinstance(mode, FakeTensorMode) else tensor


def _described(node: fx.Node) -> str:
    value = node.meta["val"]
    return f"a {value.dim()}-d {value.dtype}"
