"""How inputs and outputs are nested, as JSON: "*" stands for one value."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib
import importlib.util
import keyword
import re
from collections.abc import Mapping
from typing import Any

from torch.utils import _pytree as pytree

from remixer.export.artifacts.outputs import Outputs
from remixer.export.typed import TypedError

LEAF = "*"
# The one library whose classes of outputs are looked for, and the modules that they stand in.
_OF_TRANSFORMERS = re.compile(r"(transformers\.(modeling_outputs|models\.\w+\.modeling_\w+))\.(\w+)")


def written(spec: pytree.TreeSpec) -> Any:
    """A structure as what JSON can hold.

    Raises:
        TypedError: it has a class whose parts have no names.
    """
    kind, children = spec.type, spec.children()
    if spec.is_leaf():
        return LEAF
    inner = [written(each) for each in children]
    if kind in (list, tuple):
        return {kind.__name__: inner}
    if kind in (dict, collections.OrderedDict):
        return {kind.__name__: [[_name(name), each] for name, each in zip(spec.context, inner, strict=True)]}
    if kind is Outputs:
        of, names = spec.context
        return {"class": of, "names": list(names), "of": inner}
    if kind is collections.namedtuple:
        made = spec.context
        return {"namedtuple": f"{made.__module__}.{made.__qualname__}", "names": list(made._fields), "of": inner}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "names": _names(spec), "of": inner}


def structure(found: Any, *, inputs: bool = False) -> pytree.TreeSpec:
    """The structure that `written` wrote.

    Args:
        found: plain values.
        inputs: whether it is that of inputs, which have no classes.

    Raises:
        TypedError: it is none.
    """
    if found == LEAF:
        return pytree.treespec_leaf()
    if not isinstance(found, dict):
        raise TypedError(f"expected how values are nested, got {found!r:.80}")
    inner = functools.partial(structure, inputs=inputs)
    match found:
        case {"list": list(items), **rest} if not rest:
            return pytree.TreeSpec(list, None, [inner(each) for each in items])
        case {"tuple": list(items), **rest} if not rest:
            return pytree.TreeSpec(tuple, None, [inner(each) for each in items])
        case {"dict": list(items), **rest} if not rest:
            return pytree.TreeSpec(dict, _keys(items), [inner(each) for _, each in items])
        case {"OrderedDict": list(items), **rest} if not rest:
            return pytree.TreeSpec(collections.OrderedDict, _keys(items), [inner(each) for _, each in items])
        case {"class": str(of), "names": list(names), "of": list(items), **rest} if not rest and not inputs:
            _check_names(names, len(items))
            children = [inner(each) for each in items]
            kind = _class_of_transformers(of)
            if kind is not None:
                return pytree.TreeSpec(kind, list(names), children)
            return pytree.TreeSpec(Outputs, (of, tuple(names)), children)
        case {"namedtuple": str(of), "names": list(names), "of": list(items), **rest} if not rest and not inputs:
            _check_names(names, len(items))
            made: Any = collections.namedtuple
            return pytree.TreeSpec(made, _namedtuple(of, tuple(names)), [inner(each) for each in items])
    raise TypedError(f"expected how values are nested, got {found!r:.80}")


def _names(spec: pytree.TreeSpec) -> list[str]:
    """The names that a class has its parts under, in their order."""
    marks = [object() for _ in spec.children()]
    made = pytree.SUPPORTED_NODES[spec.type].unflatten_fn(marks, spec.context)
    items: dict[Any, Any] = {}
    if isinstance(made, Mapping):
        items = dict(made)
    elif dataclasses.is_dataclass(made):
        items = {item.name: getattr(made, item.name, None) for item in dataclasses.fields(made)}
    names = {id(value): name for name, value in items.items() if isinstance(name, str)}
    if not all(id(mark) in names for mark in marks):
        raise TypedError(f"outputs of the class {spec.type.__qualname__} can't be written: its parts have no names")
    return [names[id(mark)] for mark in marks]


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypedError(f"a dict of inputs or outputs has the key {name!r:.80}, which is no text")
    return name


def _keys(items: list[Any]) -> list[str]:
    keys = [each[0] for each in items if isinstance(each, list) and len(each) == 2 and isinstance(each[0], str)]
    if len(keys) != len(items) or len(set(keys)) != len(keys):
        raise TypedError("expected names and values of a dict")
    return keys


def _check_names(names: list[Any], count: int) -> None:
    fine = [each for each in names if isinstance(each, str) and each.isidentifier() and not keyword.iskeyword(each)]
    if len(set(fine)) != len(names) or len(names) != count:
        raise TypedError(f"expected the names of {count} outputs, got {names!r:.80}")


def _class_of_transformers(of: str) -> type | None:
    """The class of outputs that the original model gave, if transformers is installed and has it."""
    parts = _OF_TRANSFORMERS.fullmatch(of)
    if parts is None or importlib.util.find_spec("transformers") is None:
        return None
    try:
        found = getattr(importlib.import_module(parts[1]), parts[3], None)
        base = importlib.import_module("transformers.utils").ModelOutput
    except ImportError:  # of another version of transformers, or one that lacks something itself
        return None
    return found if isinstance(found, type) and issubclass(found, base) and found in pytree.SUPPORTED_NODES else None


@functools.lru_cache(maxsize=256)
def _namedtuple(of: str, names: tuple[str, ...]) -> Any:
    module, _, name = of.rpartition(".")
    if not name.isidentifier() or keyword.iskeyword(name) or any(each.startswith("_") for each in names):
        raise TypedError(f"expected a named tuple, got {of!r:.80} of {', '.join(names):.80}")
    return collections.namedtuple(name, names, module=module)
