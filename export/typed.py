"""Frozen dataclasses as JSON, and back by what their annotations say: nothing else is ever made of what was read."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import torch

from remixer import mixers
from remixer.mixers import MixerConfig

T = TypeVar("T")
MOST_BYTES = 2**28  # of a JSON file: SmolLM2's graph of 30 layers has 2**21
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class TypedError(ValueError):
    """What was read is not what was expected."""


def parsed(text: str | bytes) -> Any:
    """JSON text as plain values.

    Raises:
        TypedError: it is none, is nested too deeply, or has the numbers that JSON doesn't have.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TypedError(f"this is no JSON: {error}") from error


def read_text(path: Path) -> str:
    """A file of text that is no larger than the JSON files of this project are.

    Raises:
        OSError: it can't be read.
        TypedError: it is no regular file, too large, or not in UTF-8.
    """
    if not path.is_file():
        if path.exists():
            raise TypedError("this is no regular file")
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise TypedError(f"this file has over {MOST_BYTES:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TypedError(f"this is no text: {error}") from error


def plain(value: Any) -> Any:
    """A dataclass, or what it is made of, as what JSON can hold.

    Examples:
        >>> plain(mixers.Toeplitz().to_dict() | {"far": float("inf"), "dtype": torch.float16})["dtype"]
        'float16'
    """
    if isinstance(value, MixerConfig):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypedError(f"a {type(value).__name__} can't be written as JSON")


def typed(kind: type[T], found: Any, where: str = "") -> T:
    """The dataclass that `plain` wrote, all of its fields checked.

    Args:
        kind: a dataclass, or MixerConfig for that of any mixer which is registered.
        found: plain values.
        where: they stand, for errors.

    Raises:
        TypedError: a field is missing, unknown, or of another type.
        UnknownMixerError: it is the config of a mixer that is not installed.
        MixerConfigError: it is a config with values that no attention could take.

    Examples:
        >>> typed(MixerConfig, {"mixer": "long_short", **mixers.LongShort(window=3).to_dict()}).window
        3
    """
    value: T = _read(kind, found, where)
    return value


def dtype_of(name: Any, where: str = "") -> torch.dtype:
    """The dtype of a name such as "float32".

    Raises:
        TypedError: there is none of this name.
    """
    found = _dtypes().get(name) if isinstance(name, str) else None
    if found is None:
        raise TypedError(f"{_at(where)}expected a dtype of torch, got {name!r:.80}")
    return found


@functools.cache
def _dtypes() -> dict[str, torch.dtype]:
    return {str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _read(kind: Any, found: Any, where: str) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return found
    if origin in (Union, types.UnionType):
        return _one_of(options, found, where)
    if origin is Literal:
        if any(found == each and type(found) is type(each) for each in options):
            return found
        raise TypedError(f"{_at(where)}expected one of {', '.join(map(repr, options))}, got {found!r:.80}")
    if kind is torch.dtype:
        return dtype_of(found, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind, found, where)
    if origin is tuple:
        return _tuple(options, found, where)
    if origin is list:
        return [_read(options[0], each, f"{where}[{index}]") for index, each in enumerate(_sequence(found, where))]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = _mapping(found, where).items()
        return {_read(options[0], name, where): _read(options[1], each, _in(where, name)) for name, each in pairs}
    return _plain(kind, found, where)


def _one_of(options: tuple[Any, ...], found: Any, where: str) -> Any:
    """Of a union: None, or the first kind that fits."""
    if found is None and type(None) in options:
        return None
    told = []
    for option in options:
        if option is not type(None):
            try:
                return _read(option, found, where)
            except TypedError as error:
                told.append(str(error))
    raise TypedError(told[0])


def _dataclass(kind: Any, found: Any, where: str) -> Any:
    found = dict(_mapping(found, where))
    if issubclass(kind, MixerConfig):
        name = found.pop("mixer", None)
        if not isinstance(name, str):
            raise TypedError(f"{_at(where)}expected the config of a mixer, got {name!r:.80} for its name")
        kind = mixers.get(name).Config
    hints = _hints(kind)
    needed = {
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if wrong := [name for name in found if name not in hints] + sorted(needed - found.keys()):
        raise TypedError(f"{_at(where)}{kind.__name__} has no {wrong[0]!r:.80}, or needs it")
    return kind(**{name: _read(hints[name], each, _in(where, name)) for name, each in found.items()})


def _tuple(options: tuple[Any, ...], found: Any, where: str) -> tuple[Any, ...]:
    found = _sequence(found, where)
    if len(options) == 2 and options[1] is ...:
        options = (options[0],) * len(found)
    if len(options) != len(found):
        raise TypedError(f"{_at(where)}expected {len(options)} values, got {len(found)}")
    return tuple(
        _read(option, each, f"{where}[{index}]")
        for index, (option, each) in enumerate(zip(options, found, strict=True))
    )


def _plain(kind: Any, found: Any, where: str) -> Any:
    if kind is float and isinstance(found, str) and found in _NOT_FINITE:
        return _NOT_FINITE[found]
    if kind is float and type(found) is int and abs(found) < 2**63:
        return float(found)
    if kind in (bool, int, float, str) and type(found) is kind:
        return found
    raise TypedError(f"{_at(where)}expected {getattr(kind, '__name__', kind)}, got {found!r:.80}")


def _sequence(found: Any, where: str) -> list[Any]:
    if not isinstance(found, list):
        raise TypedError(f"{_at(where)}expected a list, got {found!r:.80}")
    return found


def _mapping(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypedError(f"{_at(where)}expected an object, got {found!r:.80}")
    return found


def _in(where: str, name: str) -> str:
    return f"{where}.{name:.80}" if where else f"{name:.80}"


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
