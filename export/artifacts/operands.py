"""Operands of a graph's nodes as JSON, and back: numbers, text, dtypes, and the nodes themselves.

torch.fx turns them into source code, so nothing else gets through.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from remixer.export.typed import TypedError, dtype_of, plain

_ENUMS = {
    f"{type(each).__name__}.{str(each).removeprefix('torch.')}": each
    for each in (
        *(torch.strided, torch.contiguous_format, torch.channels_last),
        *(torch.channels_last_3d, torch.preserve_format),
    )
}


def written(value: Argument) -> Any:
    """An operand as what JSON can hold.

    Raises:
        TypedError: no file may hold it.

    Examples:
        >>> written((1, torch.float16, [float("-inf")]))
        {'tuple': [1, {'dtype': 'float16'}, [{'float': '-inf'}]]}
    """
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if isinstance(value, list):
        return [written(each) for each in value]
    if type(value) in (tuple, torch.Size):
        return {"tuple": [written(each) for each in value]}  # type: ignore[union-attr]
    if isinstance(value, dict):
        return {"dict": [[name_of_argument(name), written(each)] for name, each in value.items()]}
    if isinstance(value, slice):
        return {"slice": [written(each) for each in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": plain(value)}
    if isinstance(value, torch.device):
        return {"device": "meta" if value.type == "meta" else "own"}
    if isinstance(value, (torch.layout, torch.memory_format)):
        return {"enum": f"{type(value).__name__}.{str(value).removeprefix('torch.')}"}
    raise TypedError(f"{value!r:.80}, a {type(value).__name__}, can't be written as an operand")


def operands(found: Any, made: Mapping[str, fx.Node]) -> tuple[Argument, ...]:
    """A list of operands that `written` wrote, with nodes by their names.

    Raises:
        TypedError: it is something else.
    """
    if not isinstance(found, list | None):
        raise TypedError(f"expected operands, got {found!r:.80}")
    return tuple(_operand(each, made) for each in found or ())


def named_operands(found: Any, made: Mapping[str, fx.Node]) -> dict[str, Argument]:
    """A list of names and operands.

    Raises:
        TypedError: it is something else.
    """
    if not isinstance(found, list | None) or not all(isinstance(each, list) and len(each) == 2 for each in found or ()):
        raise TypedError(f"expected names and operands, got {found!r:.80}")
    return {name_of_argument(name): _operand(value, made) for name, value in found or ()}


def name_of_argument(name: Any) -> str:
    """A name that Python takes for an argument.

    Raises:
        TypedError: it is none.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise TypedError(f"expected a name, got {name!r:.80}")
    return name


def _operand(found: Any, made: Mapping[str, fx.Node]) -> Any:
    if found is None or type(found) in (bool, int, float, str):
        return found
    if isinstance(found, list):
        return [_operand(each, made) for each in found]
    if isinstance(found, dict) and len(found) == 1:
        ((kind, inner),) = found.items()
        if kind == "dict":
            return named_operands(inner, made)
        if kind in ("tuple", "slice") and isinstance(inner, list):
            items = [_operand(each, made) for each in inner]
            if kind == "tuple":
                return tuple(items)
            if len(items) == 3:
                return slice(*items)
        if kind == "dtype":
            return dtype_of(inner)
        if isinstance(inner, (str, list)) and (simple := _simple(kind, inner, made)) is not None:
            return simple
    raise TypedError(f"expected an operand, got {found!r:.80}")


def _simple(kind: str, inner: Any, made: Mapping[str, fx.Node]) -> Any:
    match kind, inner:
        case "node", str():
            return made.get(inner)
        case "float", "inf" | "-inf" | "nan":
            return float(inner)
        case "complex", [float(real), float(imaginary)]:
            return complex(real, imaginary)
        case "device", "own" | "meta":
            return torch.device("meta" if inner == "meta" else "cpu")
        case "enum", str():
            return _ENUMS.get(inner)
    return None
