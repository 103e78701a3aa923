"""A device that only pretends to be one: "pretend".

Its tensors lie on the CPU, and its operators are those of the CPU, but they refuse operands that lie on both, as a GPU
does. `set_up` can't be taken back: it is called in a process of its own. Nothing that the device makes is freed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

CPU = torch.device("cpu")
META = DispatchKeySet(DispatchKey.Meta)
MOVES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_local_scalar_dense")
# What torch would take apart into kernels that look into memory, of which the device has none.
WHOLE = (
    "scaled_dot_product_attention",
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
)
_holders: dict[tuple[int, torch.dtype], Tensor] = {}  # by storage on the CPU
_bases: dict[int, Tensor] = {}  # all of a storage on the CPU, by the storage of its holder


def pretended(tensor: Tensor) -> Tensor:
    """The tensor of the device that shares memory with one of the CPU."""
    storage = tensor.untyped_storage()
    key = storage._cdata, tensor.dtype
    if key not in _holders:
        base = tensor.as_strided((storage.nbytes() // tensor.element_size(),), (1,), 0)
        holder = torch._C._acc.create_empty_tensor(base.shape, base.dtype)
        _holders[key], _bases[holder.untyped_storage()._cdata] = holder, base
    view = tensor.shape, tensor.stride(), tensor.storage_offset()
    return torch.ops.aten.as_strided.default.redispatch(META, _holders[key], *view)


def real(tensor: Tensor) -> Tensor:
    """The tensor of the CPU behind one of the device."""
    if tensor.device.type != "pretend":
        return tensor
    base = _bases[tensor.untyped_storage()._cdata]
    return base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator of the device."""
    leaves, form = tree_flatten((args, kwargs))
    name = op._schema.name
    for leaf in leaves if name not in MOVES else ():
        if isinstance(leaf, Tensor) and leaf.device.type != "pretend" and leaf.dim():
            raise RuntimeError(f"{name}: tensors on pretend and {leaf.device}")
    behind = [
        real(leaf) if isinstance(leaf, Tensor) else CPU if isinstance(leaf, torch.device) else leaf for leaf in leaves
    ]
    own, named = tree_unflatten(behind, form)
    if name == "aten::_copy_from":
        own[1].copy_(own[0])
        return args[1]
    if name == "aten::_local_scalar_dense":
        return own[0].item()
    numbers = zip(own, (formal.type for formal in op._schema.arguments), strict=False)
    found = op(*[torch.tensor(one) if _is_wrapped(one, kind) else one for one, kind in numbers], **named)
    given: dict[int, Tensor] = {}
    for leaf, mine in zip(leaves, behind, strict=True):
        if isinstance(leaf, Tensor) and leaf.device.type == "pretend":
            given[id(mine)] = leaf
            if leaf.shape != mine.shape:  # an output that was made larger
                leaf.data = pretended(mine)
    away = name == "aten::_to_copy" and str(kwargs.get("device")) == "cpu"
    results, form = tree_flatten(found)
    return tree_unflatten([each if away else given.get(id(each), _there(each)) for each in results], form)


def _is_wrapped(operand: Any, kind: Any) -> bool:
    """Whether an operand is a number where the operator is declared to take a tensor."""
    return isinstance(operand, (bool, int, float)) and str(kind) == "Tensor"


def _there(value: Any) -> Any:
    return pretended(value) if isinstance(value, Tensor) else value


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if tensor.device.type != "pretend":
        return _deepcopy(tensor, memo)
    if id(tensor) not in memo:
        made = tensor.detach().clone()
        parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad) if parameter else made
    return memo[id(tensor)]


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    return _of_parameters(tensor, memo) if isinstance(tensor, torch.nn.Parameter) else _of_tensors(tensor, memo)


_of_tensors, _of_parameters = Tensor.__deepcopy__, torch.nn.Parameter.__deepcopy__


def set_up() -> list[torch.library.Library]:
    """Let there be the device for the rest of this process, which has to keep what this gives."""
    Tensor.__deepcopy__ = torch.nn.Parameter.__deepcopy__ = _copied
    _setup_privateuseone_for_python_backend("pretend")
    rest, whole = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(run, "PrivateUse1")
    for name in WHOLE:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        whole.impl(name, lambda *args, _op=op, **kwargs: run(_op, *args, **kwargs), "PrivateUse1")
    return [rest, whole]
