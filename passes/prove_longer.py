"""Running a program that was made longer beside what it was before, and where only it can go."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from remixer.passes.errors import ExtendError
from remixer.passes.table_ends import End
from remixer.rewrite.agreement import NotRunError, difference, run
from remixer.rewrite.elsewhere import example_at, sizes_of_example
from remixer.rewrite.program import Program, shape_of

_SHORT = 256  # a length at which both are run; the tables' first rows are the same by construction
_BEYOND = 9  # tokens past the last end


def prove_longer(before: Program, after: Program, ends: list[End], max_length: int, *, same: bool) -> None:
    """Raise unless the new program runs at a length that the old doesn't take, and is the old where that runs.

    Args:
        before: the old program.
        after: the new one.
        ends: what ended.
        max_length: what was asked for.
        same: whether shorter inputs should give what they gave.

    Raises:
        ExtendError: it doesn't; the message says how.
    """
    if not before.args and not before.kwargs:
        return
    own = sizes_of_example(before)
    if same and ends:
        short = min(_SHORT, *(end.reach for end in ends))
        call = example_at(before, _sizes(own, ends, short), _padded)
        try:
            told = difference(before.graph_module, after.graph_module, call)
        except NotRunError:
            told = None  # an example of this size is none of the model's; the one below has to run
        if told is not None:
            raise ExtendError(f"the extended program gives other outputs at {short} than the one before: {told}")
    for length in sorted({min(max_length, end.reach + _BEYOND) for end in ends}):
        sizes = _sizes(own, [end for end in ends if end.reach < length], length)
        try:
            outputs = run(after.graph_module, example_at(after, sizes, _padded))
        except NotRunError as error:
            raise ExtendError(
                f"can't extend to {max_length:,}: at {length:,} the extended graph raises {error}. Something in it "
                "ends that could not be found. What to do: a shorter max_length, or a mixer for the attention that it "
                "comes from"
            ) from error
        _check_shapes(after, outputs, sizes, length)


def _sizes(own: Mapping[sympy.Symbol, int], ends: list[End], length: int) -> dict[sympy.Symbol, int]:
    return {**own, **{symbol: length for end in ends for symbol in end.symbols}}


def _padded(own: Tensor) -> Tensor:
    """In place of a mask (B, T) one by which the last quarter of the last row is padding, and nothing else."""
    if own.dim() != 2:
        return own
    mask = torch.ones_like(own)
    mask[-1, own.shape[1] - own.shape[1] // 4 :] = 0
    return mask


def _check_shapes(program: Program, outputs: object, sizes: Mapping[sympy.Symbol, int], length: int) -> None:
    """Every output has to be as long as its recorded shape says: a slice that ends cuts without a word."""
    nodes = pytree.tree_leaves(program.graph.output_node().args)
    for node, value in zip(nodes, pytree.tree_leaves(outputs), strict=False):
        wanted = shape_of(node) if hasattr(node, "meta") else None
        if wanted is None or not isinstance(value, Tensor):
            continue
        expected = [sympy.sympify(size.xreplace(dict(sizes))) for size in wanted]
        if any(one.is_Integer and int(one) != got for one, got in zip(expected, value.shape, strict=True)):
            raise ExtendError(
                f"at {length:,} the extended graph gives {node.name} of {tuple(value.shape)} in place of "
                f"{tuple(map(str, expected))}: something in it cuts inputs off"
            )
