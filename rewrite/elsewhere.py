"""Whether a captured graph computes what its model does on other inputs than those it was captured with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from remixer.rewrite.agreement import NotRunError, difference, run
from remixer.rewrite.inputs import Aspect, Call, aspect_of
from remixer.rewrite.program import Program, shape_of

Sizes = dict[sympy.Symbol, int]
_LENGTH: list[Aspect] = ["length"]
_SOLVED = sympy.Symbol("solved")


def disagreements(model: nn.Module, program: Program, *, further: bool = False) -> dict[Aspect | None, str]:
    """What of the inputs has to change for the graph to differ from its model, and how it differs then.

    Masks hide nothing in these runs: code that leaves out such a mask is often not what is traced. The key
    None stands for that alone. Sizes at which the model itself raises tell nothing.

    Args:
        model: runs beside the graph.
        program: its capture.
        further: try longer lengths than were tried before, which the model may have kept something for.

    Returns:
        Empty where all that was tried agrees.
    """
    told, ran = _differs(model, program, ("batch", "length"), further)
    if ran and told is None:
        return {}
    alone: tuple[tuple[Aspect, ...], ...] = ((), ("batch",), ("length",))
    found: dict[Aspect | None, str] = {}
    for aspects in alone:
        told, _ = _differs(model, program, aspects, further)
        if told is not None:
            found[aspects[0] if aspects else None] = told
        if None in found:
            break
    return found


def _differs(model: nn.Module, program: Program, aspects: Collection[Aspect], further: bool) -> tuple[str | None, bool]:
    """How the two differ where these aspects are changed, or None; and whether the model could be run so at all.

    Lengths are made shorter and longer: a graph may hold a table that was made for the example's length.
    """
    ran = False
    for longer in (0, 2 if further else 1) if "length" in aspects else (0,):
        changed: Collection[Aspect] = _LENGTH if longer else aspects  # more rows would only take longer
        with contextlib.suppress(NotRunError):
            told = difference(model, program.graph_module, elsewhere(program, changed, longer=longer))
            if told is not None:
                return told, True
            ran = True
    return None, ran


def elsewhere(program: Program, aspects: Collection[Aspect], *, longer: int = 0) -> Call:
    """A program's example at other sizes, its rows and tokens repeated or cut off, and with nothing masked.

    Args:
        program: the capture.
        aspects: which symbols get another size.
        longer: make lengths longer by so many halves; 0 makes them shorter.
    """
    own = sizes_of_example(program)
    sizes = {symbol: _changed(program, symbol, size, aspects, longer) for symbol, size in own.items()}
    call: Call = pytree.tree_map(_unmasked, example_at(program, sizes))
    return call


def sizes_of_example(program: Program) -> Sizes:
    """What each symbol of a program's inputs is in its example, as far as that can be told."""
    sizes: Sizes = {}
    for leaf, shape in _with_shapes(program):
        for size, expression in zip(getattr(leaf, "shape", ()), shape, strict=False):
            sizes |= _solved(expression, size)
    return sizes


def example_at(program: Program, sizes: Sizes, mask: Callable[[Tensor], Tensor] | None = None) -> Call:
    """A program's example at other sizes, its rows and tokens repeated or cut off.

    Args:
        program: the capture.
        sizes: a value for each symbol.
        mask: given each mask of zeros and ones, makes what stands in place of it. Tokens that the example's own mask
            hides in some row are then left out, since the new one may show them: what stands there, such as a vector
            of zeros, is nothing that a model is used to see.
    """
    _, structure = pytree.tree_flatten(_example(program))
    inputs = _with_shapes(program)
    if mask is not None:
        inputs = _without_hidden(inputs)
    fitted = [_fitted(leaf, shape, sizes) for leaf, shape in inputs]
    if mask is not None:
        fitted = [mask(leaf) if is_mask(leaf) else leaf for leaf in fitted]
    call: Call = pytree.tree_unflatten(fitted, structure)
    return call


def is_mask(leaf: Any) -> bool:
    """Whether an input is made of zeros and ones, by rows."""
    return isinstance(leaf, Tensor) and leaf.dim() > 1 and bool(((leaf == 0) | (leaf == 1)).all())


def _with_shapes(program: Program) -> list[tuple[Any, tuple[sympy.Expr, ...]]]:
    """The inputs of a program's example, each with its symbolic shape."""
    leaves = pytree.tree_leaves(_example(program))
    shapes = [shape_of(node) or () for node in program.graph.find_nodes(op="placeholder")]
    return list(zip(leaves, shapes, strict=True))


def _without_hidden(inputs: list[tuple[Any, tuple[sympy.Expr, ...]]]) -> list[tuple[Any, tuple[sympy.Expr, ...]]]:
    """The inputs without the places that the first mask (B, T) hides in some row, if it leaves any."""
    masks = [(leaf, shape) for leaf, shape in inputs if is_mask(leaf) and leaf.dim() == len(shape) == 2]
    if not masks or not masks[0][1][1].free_symbols:
        return inputs
    mask, (_, tokens) = masks[0]
    kept = mask.bool().all(0).nonzero()[:, 0]
    if not len(kept):
        return inputs
    found = []
    for leaf, shape in inputs:
        for dim, size in enumerate(shape if isinstance(leaf, Tensor) else ()):
            leaf = leaf.index_select(dim, kept.to(leaf.device)) if size == tokens else leaf
        found.append((leaf, shape))
    return found


def runs_longer(model: nn.Module, program: Program) -> bool:
    """Whether the model itself runs where each length that its capture fixed is longer by half.

    Then the capture may have fixed it for what the model kept of an earlier run, and the model now keeps another.
    """
    held = {(one.input, one.dim) for one in program.static if aspect_of(one.dim) == "length" and one.size > 1}
    if not held:
        return False
    leaves, structure = pytree.tree_flatten(_example(program))
    longer = []
    for leaf, node in zip(leaves, program.graph.find_nodes(op="placeholder"), strict=True):
        for dim, size in enumerate(getattr(leaf, "shape", ())):
            if (str(node.target), dim) in held:
                leaf = _resized(leaf, dim, size + max(1, size // 2))
        longer.append(leaf)
    try:
        run(model, pytree.tree_unflatten(longer, structure))
    except NotRunError:
        return False
    return True


def kept_by(model: nn.Module) -> list[Any]:
    """All that a model's modules hold besides parameters: numbers, tables, caches, and what is in these."""
    found: list[Any] = []
    own = vars(nn.Module())
    for module in model.modules():
        held = {name: value for name, value in vars(module).items() if name not in own} | module._buffers
        for value in held.values():
            items = value.values() if isinstance(value, dict) else value
            found += items if isinstance(items, (list, tuple, set, type({}.values()))) else [items]
    return found


def differ(before: list[Any], after: list[Any]) -> bool:
    """Whether what a model holds is no longer the same: plain values by value, anything else by identity."""
    plain = (int, float, str, tuple)
    pairs = zip(before, after, strict=False)
    return len(before) != len(after) or any(
        one is not other and not (isinstance(one, plain) and one == other) for one, other in pairs
    )


def _example(program: Program) -> Call:
    """A program's example, its named inputs in the graph's order."""
    args, kwargs = program.args, dict(program.kwargs)
    codegen = program.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and codegen.pytree_info.in_spec is not None:
        kwargs = {name: kwargs[name] for name in codegen.pytree_info.in_spec.child(1).context or ()}
    return args, kwargs


def _solved(expression: sympy.Expr, size: int) -> Sizes:
    """The value of a size's one symbol, such as 3 for 8 * s where it is 24."""
    if len(expression.free_symbols) != 1:
        return {}
    (symbol,) = expression.free_symbols
    # Symbols of shapes are assumed to be positive integers, which `solve` is slow or unable to use.
    found = sympy.solve(expression.xreplace({symbol: _SOLVED}) - size, _SOLVED)
    return {symbol: int(found[0])} if len(found) == 1 and found[0].is_Integer else {}


def _changed(program: Program, symbol: sympy.Symbol, size: int, aspects: Collection[Aspect], longer: int) -> int:
    if symbol in program.batch:
        other = size + 1 if "batch" in aspects else size
    elif "length" not in aspects:
        return size
    else:
        other = size + longer * max(1, size // 2) if longer else size - max(1, size // 3)
    smallest, largest = program.limits.get(symbol, (2, None))
    return max(smallest, 2, other if largest is None else min(other, largest))


def _fitted(leaf: Any, shape: tuple[sympy.Expr, ...], sizes: Sizes) -> Any:
    """An input at these sizes."""
    if not isinstance(leaf, Tensor):
        return leaf
    for dim, expression in enumerate(shape):
        size = sympy.sympify(expression.xreplace(sizes))
        if expression.free_symbols and size.is_Integer:
            leaf = _resized(leaf, dim, int(size))
    return leaf


def _unmasked(leaf: Any) -> Any:
    """All ones, if it is a mask."""
    return torch.ones_like(leaf) if is_mask(leaf) else leaf


def _resized(leaf: Tensor, dim: int, size: int) -> Tensor:
    """A dimension cut off at a size, or repeated up to it."""
    return leaf.index_select(dim, torch.arange(size, device=leaf.device) % leaf.shape[dim])
