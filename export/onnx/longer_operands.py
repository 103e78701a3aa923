"""Operands of mixers at a length that nothing is decided by, where the example of the whole model is short.

torch.export takes what is 1 for the example, such as the number of tiles of a short text, for a 1 at all lengths.
Beside images of one size the whole model can't be called with a longer text; its mixers can.
"""

from __future__ import annotations

import sympy
from torch import Tensor
from torch.utils import _pytree as pytree

from remixer.export.examples import EXPORT_LENGTH, uneven
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import expression

Sizes = dict[sympy.Symbol, sympy.Integer]


def longer_operands(call: Call, recorded: Call) -> Call:
    """The call with longer tensors, of zeros, where lengths are symbols; as it is where they are long enough.

    Args:
        call: of one mixer.
        recorded: the same with its sizes in symbols.
    """
    leaves, structure = pytree.tree_flatten(call)
    pairs = list(zip(leaves, pytree.tree_leaves(recorded), strict=True))
    own: Sizes = {}
    for leaf, like in pairs:
        own |= _lengths(leaf, like) if isinstance(leaf, Tensor) else {}
    longer = {symbol: max(size, sympy.Integer(uneven(EXPORT_LENGTH))) for symbol, size in own.items()}
    if longer == own:
        return call
    shapes = [_shape(leaf, like, own, longer) if isinstance(leaf, Tensor) else () for leaf, like in pairs]
    if None in shapes:
        return call
    resized = [
        leaf if shape is None or not isinstance(leaf, Tensor) else leaf.new_zeros(shape)
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]
    found: Call = pytree.tree_unflatten(resized, structure)
    return found


def _lengths(tensor: Tensor, like: Tensor) -> Sizes:
    """Symbols that are sizes behind the first, which is that of samples, and their values."""
    sizes = zip(map(expression, like.shape[1:]), tensor.shape[1:], strict=True)
    return {symbol: sympy.Integer(size) for symbol, size in sizes if isinstance(symbol, sympy.Symbol)}


def _shape(tensor: Tensor, like: Tensor, own: Sizes, longer: Sizes) -> tuple[int, ...] | None:
    """A tensor's sizes, as much greater as their symbols make them; None where that can't be told."""
    more = [size.xreplace(longer) - size.xreplace(own) for size in map(expression, like.shape)]
    if not all(size.is_Integer for size in more):
        return None
    return tuple(size + int(added) for size, added in zip(tensor.shape, more, strict=True))
