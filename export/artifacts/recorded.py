"""What is known of a node's value, its dtype and symbolic shape, as JSON and back: no numbers, no memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from remixer.export.artifacts.sizes import size_of, symbolic
from remixer.export.artifacts.symbols import Symbols
from remixer.export.typed import TypedError, dtype_of, plain

MOST_DIMS = 64


def written(value: Any, symbols: Symbols) -> Any:
    """What is recorded of a value, or None of what has no meaning in a file."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            raise TypedError(f"tensors of the layout {value.layout} can't be written")
        shape, stride = (list(map(symbols.written, sizes)) for sizes in (value.shape, value.stride()))
        return {"dtype": plain(value.dtype), "shape": shape, "stride": stride}
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return {"number": symbols.written(value)}
    if type(value) in (bool, int, str) or (type(value) is float and value - value == 0.0):
        return {"is": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [written(each, symbols) for each in value]}
    return None


@dataclass(frozen=True)
class Recorder:
    """Makes recorded values anew.

    Attributes:
        env: what torch knows of the symbols.
        symbols: by name.
        mode: in which tensors have no memory.
        known: tensors that were made, by dtype, shape and strides: nodes that are alike share one.
    """

    env: ShapeEnv
    symbols: Mapping[str, sympy.Symbol]
    mode: FakeTensorMode
    known: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, env: ShapeEnv, symbols: Mapping[str, sympy.Symbol]) -> Recorder:
        """One of these symbols."""
        return cls(env, symbols, FakeTensorMode(shape_env=env, allow_non_fake_inputs=True))

    def value(self, found: Any) -> Any:
        """What `written` wrote.

        Raises:
            TypedError: it is something else.
        """
        match found:
            case None:
                return None
            case {"dtype": dtype, "shape": list(shape), "stride": list(stride), **rest} if not rest:
                if len(shape) != len(stride) or len(shape) > MOST_DIMS:
                    raise TypedError(f"a shape of {len(shape)} sizes and {len(stride)} strides is none")
                key = repr((dtype, shape, stride))
                if key not in self.known:
                    sizes, steps = ([self._size(each) for each in sides] for sides in (shape, stride))
                    with self.mode:
                        self.known[key] = torch.empty_strided(sizes, steps, dtype=dtype_of(dtype))
                return self.known[key]
            case {"number": number, **rest} if not rest:
                return symbolic(size_of(number, self.symbols), self.env)
            case {"is": bool() | int() | float() | str() as value, **rest} if not rest:
                return value
            case {"list": list(items), **rest} if not rest:
                return [self.value(each) for each in items]
            case {"tuple": list(items), **rest} if not rest:
                return tuple(self.value(each) for each in items)
        raise TypedError(f"expected what is known of a value, got {found!r:.80}")

    def _size(self, found: Any) -> Any:
        if type(found) is int:
            return found
        return symbolic(size_of(found, self.symbols), self.env)
