"""The contract of a pass: valid program in, valid program out, every edit on record."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.utils import _pytree as pytree

from remixer.rewrite.editor import Edit, Editor, Rewrite
from remixer.rewrite.errors import PassError
from remixer.rewrite.match import Miss
from remixer.rewrite.program import Program, expression
from remixer.rewrite.rule import Rule, apply


@dataclass(frozen=True)
class Result:
    """What a pass did.

    Attributes:
        name: the pass, with its options.
        program: the new program; the one given to the pass is untouched.
        rewrites: rules that were applied.
        misses: what was left as it is, and why.
        edits: every change.
        seconds: time the pass took.
        nodes: number of nodes before and after.
        steps: of a pipeline, each pass's own result.
    """

    name: str
    program: Program
    rewrites: tuple[Rewrite, ...] = ()
    misses: tuple[Miss, ...] = ()
    edits: tuple[Edit, ...] = ()
    seconds: float = 0.0
    nodes: tuple[int, int] = (0, 0)
    steps: tuple[Result, ...] = field(default=(), repr=False)

    @property
    def modified(self) -> bool:
        """Whether anything changed; follows from the edits."""
        return bool(self.edits)

    @property
    def graph_module(self) -> fx.GraphModule:
        """The new graph module, under the name that torch.fx pass managers look for."""
        return self.program.graph_module


@dataclass(frozen=True)
class Pass(abc.ABC):
    """One transformation of a program. A subclass is a frozen dataclass of its options and defines `run`.

    Calling a pass checks `requires`, copies the program, lets `run` edit the copy, lints the graph, makes
    sure that the outputs kept their shapes and dtypes, and checks `ensures` on the result. Passes take a
    Program or a GraphModule, so they also run inside `torch.fx.passes.infra.pass_manager.PassManager`.
    """

    @property
    def name(self) -> str:
        """How reports call the pass."""
        return type(self).__name__

    def requires(self, program: Program) -> None:  # noqa: B027 (most passes require nothing)
        """Raise PreconditionError if the pass can't work on this program."""

    @abc.abstractmethod
    def run(self, editor: Editor) -> None:
        """Make the changes, through the editor only."""

    def ensures(self, before: Program, after: Program) -> None:  # noqa: B027 (most promise no more)
        """Raise PassError if the result isn't what the pass promises."""

    def __call__(self, program: Program | fx.GraphModule) -> Result:
        """Run the pass on a copy. Never overridden."""
        if isinstance(program, fx.GraphModule):
            program = Program.of(program)
        start = time.perf_counter()
        self.requires(program)
        editor = Editor(program.copy(), self.name)
        with torch.no_grad():
            self.run(editor)
        after = editor.program
        if editor.edits:
            after.graph.lint()
            after.graph_module.recompile()
        _same_outputs(self.name, program.graph, after.graph)
        self.ensures(program, after)
        return Result(
            repr(self),
            after,
            tuple(editor.rewrites),
            tuple(editor.misses),
            tuple(editor.edits),
            time.perf_counter() - start,
            (len(program.graph.nodes), len(after.graph.nodes)),
        )


@dataclass(frozen=True)
class ApplyRules(Pass):
    """Apply rules wherever they match, earlier rules first."""

    rules: tuple[Rule, ...]

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        apply(self.rules, editor)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Called like a pass; `Result.steps` holds each pass's own result.

    Attributes:
        passes: the passes.
        watch: called with each step's result as it is done.
    """

    passes: tuple[Callable[[Program], Result], ...]
    watch: Callable[[Result], None] | None = None

    def __call__(self, program: Program | fx.GraphModule) -> Result:
        """Run all passes, each on what the one before gave."""
        if isinstance(program, fx.GraphModule):
            program = Program.of(program)
        steps: list[Result] = []
        current = program
        for step in self.passes:
            result = step(current)
            steps.append(result)
            current = result.program
            if self.watch is not None:
                self.watch(result)
        return Result(
            "Pipeline",
            current,
            tuple(item for step in steps for item in step.rewrites),
            tuple(item for step in steps for item in step.misses),
            tuple(item for step in steps for item in step.edits),
            sum(step.seconds for step in steps),
            (len(program.graph.nodes), len(current.graph.nodes)),
            tuple(steps),
        )


def _same_outputs(name: str, before: fx.Graph, after: fx.Graph) -> None:
    def described(graph: fx.Graph) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for leaf in pytree.tree_leaves(graph.output_node().args):
            value = leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf
            if isinstance(value, torch.Tensor):
                found.append((tuple(expression(size) for size in value.shape), value.dtype))
            else:
                found.append((value,))
        return found

    old, new = described(before), described(after)
    if old != new:
        raise PassError(f"pass {name} changed the outputs' shapes or dtypes from {old} to {new}")
