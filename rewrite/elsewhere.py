"""Whether a captured graph computes what its model does on other inputs than those it was captured with."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from remixer.rewrite.agreement import NotRunError, difference
from remixer.rewrite.inputs import Aspect, Call
from remixer.rewrite.program import Program, shape_of

Sizes = dict[sympy.Symbol, int]
_SOLVED = sympy.Symbol("solved")


def disagreements(model: nn.Module, program: Program) -> dict[Aspect | None, str]:
    """What of the inputs has to change for the graph to differ from its model, and how it differs then.

    Masks hide nothing in these runs: code that leaves out such a mask is often not what is traced. The key
    None stands for that alone. Sizes at which the model itself raises tell nothing.

    Returns:
        Empty where all that was tried agrees.
    """
    with contextlib.suppress(NotRunError):
        if _differs(model, program, ("batch", "length")) is None:
            return {}
    alone: tuple[tuple[Aspect, ...], ...] = ((), ("batch",), ("length",))
    found: dict[Aspect | None, str] = {}
    for aspects in alone:
        with contextlib.suppress(NotRunError):
            if (told := _differs(model, program, aspects)) is not None:
                found[aspects[0] if aspects else None] = told
        if None in found:
            break
    return found


def _differs(model: nn.Module, program: Program, aspects: Collection[Aspect]) -> str | None:
    """How the two differ where these aspects are changed, or None; NotRunError where the model can't be run so."""
    try:
        return difference(model, program.graph_module, elsewhere(program, aspects))
    except NotRunError:
        if "length" not in aspects:
            raise
    return difference(model, program.graph_module, elsewhere(program, aspects, longer=True))


def elsewhere(program: Program, aspects: Collection[Aspect], *, longer: bool = False) -> Call:
    """A program's example at other sizes, its rows and tokens repeated or cut off, and with nothing masked.

    Args:
        program: the capture.
        aspects: which symbols get another size.
        longer: make lengths longer, not shorter.
    """
    args, kwargs = program.args, dict(program.kwargs)
    codegen = program.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and codegen.pytree_info.in_spec is not None:
        kwargs = {name: kwargs[name] for name in codegen.pytree_info.in_spec.child(1).context or ()}
    leaves, structure = pytree.tree_flatten((args, kwargs))
    shapes = [shape_of(node) or () for node in program.graph.find_nodes(op="placeholder")]
    sizes: Sizes = {}
    for leaf, shape in zip(leaves, shapes, strict=True):
        for size, expression in zip(getattr(leaf, "shape", ()), shape, strict=False):
            sizes |= _solved(expression, size)
    sizes = {symbol: _changed(program, symbol, size, aspects, longer) for symbol, size in sizes.items()}
    fitted = [_fitted(leaf, shape, sizes) for leaf, shape in zip(leaves, shapes, strict=True)]
    call: Call = pytree.tree_unflatten(fitted, structure)
    return call


def _solved(expression: sympy.Expr, size: int) -> Sizes:
    """The value of a size's one symbol, such as 3 for 8 * s where it is 24."""
    if len(expression.free_symbols) != 1:
        return {}
    (symbol,) = expression.free_symbols
    # Symbols of shapes are assumed to be positive integers, which `solve` is slow or unable to use.
    found = sympy.solve(expression.xreplace({symbol: _SOLVED}) - size, _SOLVED)
    return {symbol: int(found[0])} if len(found) == 1 and found[0].is_Integer else {}


def _changed(program: Program, symbol: sympy.Symbol, size: int, aspects: Collection[Aspect], longer: bool) -> int:
    if symbol in program.batch:
        other = size + 1 if "batch" in aspects else size
    elif "length" not in aspects:
        return size
    else:
        other = size + max(1, size // 2) if longer else size - max(1, size // 3)
    smallest, largest = program.limits.get(symbol, (2, None))
    return max(smallest, 2, other if largest is None else min(other, largest))


def _fitted(leaf: Any, shape: tuple[sympy.Expr, ...], sizes: Sizes) -> Any:
    """An input at these sizes; all ones if it is a mask."""
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.dim() > 1 and bool(((leaf == 0) | (leaf == 1)).all()):
        leaf = torch.ones_like(leaf)
    for dim, expression in enumerate(shape):
        size = sympy.sympify(expression.xreplace(sizes))
        if expression.free_symbols and size.is_Integer:
            places = torch.arange(int(size), device=leaf.device) % leaf.shape[dim]
            leaf = leaf.index_select(dim, places)
    return leaf
