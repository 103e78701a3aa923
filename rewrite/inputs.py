"""Example inputs: a dict by name, a tuple, or one tensor, as the call that they stand for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from remixer.rewrite.errors import CaptureError

Inputs = Mapping[str, Any] | Sequence[Any] | torch.Tensor
Call = tuple[tuple[Any, ...], dict[str, Any]]
Aspect = Literal["batch", "length"]  # of an input's dimensions: the first counts rows, the others something else


def as_call(inputs: Inputs) -> Call:
    """Example inputs as positional and named arguments.

    Raises:
        CaptureError: they are none of a dict, a tuple, a list, a tensor.
    """
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
            return inputs[0], dict(inputs[1])
        return tuple(inputs), {}
    raise CaptureError(f"inputs must be a dict by name, a tuple or one tensor, got {type(inputs).__name__}")


def tensors_in(values: Any) -> list[torch.Tensor]:
    """All tensors of a call, or of what a model gives, in their order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def lengths_of(call: Call) -> frozenset[int]:
    """The sizes of a call's second dimensions: of sequences, where they count tokens."""
    leaves = pytree.tree_leaves(call)
    return frozenset(int(leaf.shape[1]) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 1)


def countable_dimensions(tensor: torch.Tensor, lengths: frozenset[int]) -> list[int]:
    """The dimensions of an input that count something: rows, tokens, pixels.

    The features of (B, T, C) and the channels of (B, C, H, W) floating-point inputs don't: a model's weights
    fix them. Nor does the last of three dimensions of whole numbers, such as the four sides of each token's box,
    unless it is as large as a sequence, as a mask's is.
    """
    dims = list(range(tensor.dim()))
    if tensor.is_floating_point() and tensor.dim() in (3, 4):
        dims.remove(2 if tensor.dim() == 3 else 1)
    elif tensor.dim() == 3 and tensor.shape[2] not in lengths:
        dims.remove(2)
    return dims


def aspect_of(dim: int) -> Aspect:
    """What a dimension of an input counts."""
    return "length" if dim else "batch"


def check_fits(model: nn.Module, call: Call) -> None:
    """Raise CaptureError unless the model's signature takes the call, and it holds a tensor."""
    args, kwargs = call
    name = type(model).__name__
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(f"the inputs don't fit {name}.forward: {error}. It takes {signature}") from error
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(call)):
        raise CaptureError(f"the inputs for {name} hold no tensor")


def two_rows(call: Call) -> Call:
    """The same inputs with a batch of 1 doubled: torch.export takes a 1 for a constant."""
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors or any(len(tensor) != 1 for tensor in tensors):
        return call

    def double(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf

    doubled: Call = pytree.tree_map(double, call)
    return doubled


def without_cache(model: nn.Module, call: Call) -> Call:
    """The same inputs with `use_cache=False` where the model has a say: a graph can't give a cache object."""
    args, kwargs = call
    signature = inspect.signature(model.forward)
    if "use_cache" not in signature.parameters or "use_cache" in signature.bind(*args, **kwargs).arguments:
        return call
    return args, {**kwargs, "use_cache": False}
