"""Collectives along any dimension, as nodes of a graph, whose gradients are what the other processes ask for.

Every backward is the exact adjoint. So where all processes compute the same loss, a parameter's gradients, averaged
over the processes as DistributedDataParallel does, are those of one process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives
from torch import Tensor

from remixer.mixers.distributed.ranks import Ranks

# Autograd knows these from torch 2.13 on; those of the second name it knew before.
WITH_GRADIENTS = torch._C._dispatch_has_kernel_for_dispatch_key("_c10d_functional::all_gather_into_tensor", "Autograd")


def _operators() -> Any:
    return torch.ops._c10d_functional if WITH_GRADIENTS else torch.ops._c10d_functional_autograd


def _wait(tensor: Tensor) -> Tensor:
    done: Tensor = torch.ops._c10d_functional.wait_tensor(tensor)
    return done


def gathered(part: Tensor, dim: int, ranks: Ranks) -> Tensor:
    """The parts of all processes, one behind the other along a dimension."""
    if ranks.size == 1:
        return part
    first = part.movedim(dim, 0).contiguous()
    whole = _wait(_operators().all_gather_into_tensor(first, ranks.size, ranks.name))
    return whole.movedim(0, dim)


def total(part: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all processes."""
    if ranks.size == 1:
        return part
    if not WITH_GRADIENTS:  # a sum over processes had none
        return gathered(part[None], 0, ranks).sum(0)
    return _wait(torch.ops._c10d_functional.all_reduce(part.contiguous(), "sum", ranks.name))


def largest(part: Tensor, ranks: Ranks) -> Tensor:
    """The largest of all processes, entry by entry; nothing is differentiated through it."""
    part = part.detach()
    if ranks.size == 1:
        return part
    return _wait(torch.ops._c10d_functional.all_reduce(part.contiguous(), "max", ranks.name))


def exchanged(tensor: Tensor, split: int, joined: int, ranks: Ranks) -> Tensor:
    """All-to-all: every process gets its piece of dimension `split` of all others, joined along another dimension.

    Args:
        tensor: whose size along `split` P divides.
        split: the dimension that is cut into P pieces.
        joined: the dimension along which what comes from each process is put, in their order.
        ranks: the processes.
    """
    if ranks.size == 1:
        return tensor
    pieces = tensor.unflatten(split, (ranks.size, -1)).movedim(split, 0).contiguous()
    each = [1] * ranks.size
    found = _wait(_operators().all_to_all_single(pieces, each, each, ranks.name))
    return found.movedim(0, joined).flatten(joined, joined + 1)
