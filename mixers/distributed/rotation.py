"""Tensors that go round the processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.distributed.pieces import Ring


def hops(ring: Ring, rank: int, tensors: list[Tensor | None]) -> Iterator[tuple[int, list[Any]]]:
    """Whose tensors are here, and these, hop by hop: those of the next hop are on their way meanwhile.

    What has come is sent on as it is, so that besides the own tensors there are two buffers at most.
    """
    here, flat = tensors, packed(tensors)
    for hop in range(ring.size):
        coming = sent(flat, ring, rank) if hop < ring.size - 1 else None
        yield (rank - hop) % ring.size, here
        here = []
        if coming is not None:
            flat = torch.ops._c10d_functional.wait_tensor(coming)
            here = unpacked(flat, tensors)


def packed(tensors: list[Tensor | None]) -> Tensor:
    """All tensors in one piece, as bytes."""
    return torch.cat([each.contiguous().view(torch.uint8).flatten() for each in tensors if each is not None])


def sent(flat: Tensor, ring: Ring, rank: int) -> Tensor:
    """Bytes on their way to the next process; what comes is of the one before."""
    to, from_ = ([0] * ring.size, [0] * ring.size)
    to[(rank + 1) % ring.size], from_[(rank - 1) % ring.size] = len(flat), len(flat)
    coming: Tensor = torch.ops._c10d_functional.all_to_all_single(flat, from_, to, ring.group)
    return coming


def unpacked(flat: Tensor, like: list[Tensor | None]) -> list[Tensor | None]:
    """What was packed, as views; of tensors like these, the wider dtypes first."""
    found: list[Tensor | None] = []
    for each in like:
        if each is None:
            found.append(None)
            continue
        size = each.numel() * each.element_size()
        found.append(flat[:size].view(each.dtype).view(each.shape))
        flat = flat[size:]
    return found


def moved(tensors: list[Tensor], ring: Ring, rank: int) -> list[Tensor]:
    """Those of the process before, in exchange for these; each in memory of its own."""
    given: list[Tensor | None] = list(tensors)
    flat = torch.ops._c10d_functional.wait_tensor(sent(packed(given), ring, rank))
    return [each.clone() for each in unpacked(flat, given) if each is not None]
