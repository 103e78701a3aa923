"""Which mixers are alike: the same code with other weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_OF_MODULES = ("call_super_init", "dump_patches")


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules compute the same function of their inputs and weights.

    They are of one class and the same options, hold weights of the same names, shapes and dtypes, and so do their
    children. What a module keeps under a leading underscore, such as results of before, is its own affair.
    """
    if type(one) is not type(other) or _options(one) != _options(other) or _weights(one) != _weights(other):
        return False
    children, others = dict(one.named_children()), dict(other.named_children())
    return children.keys() == others.keys() and all(alike(child, others[name]) for name, child in children.items())


def _options(module: nn.Module) -> dict[str, Any]:
    kept = {name: value for name, value in vars(module).items() if name[0] != "_" and name not in _OF_MODULES}
    return {name: id(value) if isinstance(value, Tensor) else value for name, value in kept.items()}


def _weights(module: nn.Module) -> list[tuple[Any, ...]]:
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in own]
