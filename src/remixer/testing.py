"""What people need to unit-test rules, passes, mixers and whole pipelines."""

from __future__ import annotations

import copy
import difflib
import gc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.node import map_aggregate
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from remixer.driver import explain
from remixer.passes.base import ApplyRules, Pass, Result
from remixer.passes.prove_growth import growth
from remixer.rewrite.capture import Inputs, capture
from remixer.rewrite.effects import remove_dead_code
from remixer.rewrite.growth import Order
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.rule import Rule
from remixer.rewrite.tolerance import TOLERANCE, error_and_limit

__all__ = ["TOLERANCE", "assert_close", "assert_order", "assert_rewrites", "assert_sites", "graph_text", "peak_memory"]

Model = nn.Module | ExportedProgram


def assert_close(actual: Any, expected: Any, *, where: torch.Tensor | None = None) -> None:
    """Raise AssertionError unless two tensors, or trees of tensors, agree.

    Floating-point values agree when they differ by at most the TOLERANCE of the lower of the two precisions,
    times the largest expected value (at least 1); all others when they are equal. NaN agrees with nothing.

    Args:
        actual: a tensor, or a tree of them (dict, tuple, ModelOutput).
        expected: the same, with the same shapes.
        where: bool, indexes the leading dimensions of every tensor; only these entries are compared.

    Examples:
        >>> assert_close(torch.ones(3), torch.ones(3) + 1e-6)
    """
    actual_leaves, actual_spec = pytree.tree_flatten(actual)
    expected_leaves, expected_spec = pytree.tree_flatten(expected)
    if len(actual_leaves) != len(expected_leaves):
        raise AssertionError(f"different structures: {actual_spec} against {expected_spec}")
    for index, (got, want) in enumerate(zip(actual_leaves, expected_leaves, strict=True)):
        place = f" in output {index}" if len(expected_leaves) > 1 else ""
        if not isinstance(want, torch.Tensor):
            if got != want:
                raise AssertionError(f"got {got!r}, expected {want!r}{place}")
            continue
        if got.shape != want.shape:
            raise AssertionError(f"got shape {tuple(got.shape)}, expected {tuple(want.shape)}{place}")
        if where is not None:
            got, want = got[where], want[where]
        if not want.is_floating_point():
            if not torch.equal(got, want):
                raise AssertionError(f"values differ{place}")
            continue
        error, limit = error_and_limit(got, want)
        if not error <= limit:  # not: error > limit, which NaN would pass
            raise AssertionError(f"largest error {error:.3g}, allowed {limit:.3g}{place}")


def assert_sites(model: Model, inputs: Inputs, count: int, **spec: Any) -> None:
    """Raise AssertionError unless exactly `count` attentions are understood, and each has the given spec.

    Args:
        model: as for `remixer.explain`; a rewritten model counts what it was made from.
        inputs: example inputs.
        count: how many there are.
        spec: fields of AttentionSpec that every one must have.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        >>> assert_sites(layer, torch.zeros(2, 8, 32), 1, heads=4, causal=False)
    """
    report = explain(model, inputs)
    understood = [site for site in report.sites if site.spec is not None]
    if len(understood) != count:
        raise AssertionError(f"{len(understood)} attentions were understood, expected {count}:\n{report}")
    for site in understood:
        for name, expected in spec.items():
            actual = getattr(site.spec, name)
            if actual != expected:
                raise AssertionError(f"{site.name} has {name} = {actual!r}, expected {expected!r}: {site.spec}")


def assert_order(model: fx.GraphModule | Program, at_most: str) -> None:
    """Raise AssertionError unless a rewritten model or captured program grows at most so fast.

    Args:
        model: what `remixer.remix` or `remixer.capture` gave.
        at_most: "n", "n log n" or "n^2".
    """
    grown = growth(model if isinstance(model, Program) else Program.of(model))
    if grown.order > Order.parse(at_most):
        nodes = "\n".join(f"  {node.node} {node.shape} at {node.path or 'the top'}" for node in grown.to_blame())
        raise AssertionError(f"grows as {grown.order}, at most {at_most} was asked for:\n{nodes}")


def peak_memory(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """The most bytes that a forward pass on the CPU holds at a time, beyond its inputs and weights.

    What the proof of growth says can be held against it at two lengths. What runs is a copy, in a thread of its
    own, so that nothing is left of earlier runs; nor is what they left behind freed meanwhile, which would be
    subtracted: Python's collector waits.

    Args:
        module: is called without gradients.
        args: its inputs.
        kwargs: its inputs by name.

    Examples:
        >>> peak_memory(nn.Linear(16, 4), torch.zeros(100, 16))
        1600
    """
    found: list[int] = []
    module = copy.deepcopy(module)

    def run() -> None:
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            module(*args, **kwargs)
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
        found.append(int(held.cumsum(0).max()))

    collects = gc.isenabled()
    gc.disable()
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run).result()
    finally:
        if collects:
            gc.enable()
    return found[0]


def assert_rewrites(
    before: Model | Program,
    after: Model | Program | None,
    rule: Rule | Pass,
    times: int = 1,
    *,
    inputs: Inputs | None = None,
    misses: str | None = None,
) -> Result:
    """Raise AssertionError unless a rule or pass makes `after` of `before`, in so many rewrites.

    Args:
        before: a module, or a captured program.
        after: what its graph has to look like then; None to compare nothing but the counts and the outputs.
        rule: a rule or a pass.
        times: how many rewrites there must be; 0 for a near miss, which must leave the graph as it is.
        inputs: example inputs for both; needed for modules.
        misses: what the reason of some miss has to contain.

    Returns:
        The pass's result.
    """
    old = before if isinstance(before, Program) else capture(before, inputs)
    result = (rule if isinstance(rule, Pass) else ApplyRules((rule,)))(old)
    if len(result.rewrites) != times:
        told = "".join(f"\n  {miss}" for miss in result.misses)
        raise AssertionError(f"{len(result.rewrites)} rewrites, expected {times}; misses:{told or ' none'}")
    if misses is not None and not any(misses in miss.reason for miss in result.misses):
        raise AssertionError(f"no miss says {misses!r}; there are {[miss.reason for miss in result.misses]}")
    expected = old if after is None and times == 0 else after
    if expected is not None:
        wanted = expected if isinstance(expected, Program) else capture(expected, inputs)
        _assert_same_text(_swept_text(result.program), _swept_text(wanted))
    with torch.no_grad():
        assert_close(result.graph_module(*old.args, **old.kwargs), old.graph_module(*old.args, **old.kwargs))
    return result


def graph_text(graph: fx.Graph) -> str:
    """A graph as canonical text: a line per node with its operator, operands and shape, nodes renumbered."""
    names: Mapping[fx.Node, str] = {node: f"%{index}" for index, node in enumerate(graph.nodes)}

    def written(value: Any) -> Any:
        return _Raw(names[value]) if isinstance(value, fx.Node) else value

    lines = []
    for node in graph.nodes:
        args, kwargs = map_aggregate((node.args, dict(node.kwargs)), written)
        target = node.target if node.op != "placeholder" else node.op
        shape = shape_of(node)
        lines.append(f"{names[node]} = {target} {args} {kwargs} : {len(shape) if shape is not None else '-'}-d")
    return "\n".join(lines)


class _Raw(str):
    def __repr__(self) -> str:
        return str(self)


def _swept_text(program: Program) -> str:
    copy = program.copy()
    remove_dead_code(copy.graph)
    return graph_text(copy.graph)


def _assert_same_text(actual: str, expected: str) -> None:
    if actual != expected:
        diff = "\n".join(
            difflib.unified_diff(expected.splitlines(), actual.splitlines(), "expected", "actual", lineterm="")
        )
        raise AssertionError(f"the graphs differ:\n{diff}")
