"""Tensors that go round the processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.distributed.pieces import Ring


def hops(ring: Ring, rank: int, tensors: list[Tensor | None]) -> Iterator[tuple[int, list[Any]]]:
    """Whose tensors are here, and these, hop by hop: those of the next hop are on their way meanwhile."""
    here = tensors
    for hop in range(ring.size):
        coming = sent(here, ring, rank) if hop < ring.size - 1 else None
        yield (rank - hop) % ring.size, here
        if coming is not None:
            here = arrived(coming, here)


def sent(tensors: list[Tensor | None], ring: Ring, rank: int) -> Tensor:
    """All tensors in one piece on their way to the next process; what comes is of the one before."""
    flat = torch.cat([each.contiguous().view(torch.uint8).flatten() for each in tensors if each is not None])
    to, from_ = ([0] * ring.size, [0] * ring.size)
    to[(rank + 1) % ring.size], from_[(rank - 1) % ring.size] = len(flat), len(flat)
    coming: Tensor = torch.ops._c10d_functional.all_to_all_single(flat, from_, to, ring.group)
    return coming


def arrived(coming: Tensor, like: list[Tensor | None]) -> list[Tensor | None]:
    """What has come, as tensors like these."""
    flat = torch.ops._c10d_functional.wait_tensor(coming)
    found: list[Tensor | None] = []
    for each in like:
        if each is None:
            found.append(None)
            continue
        size = each.numel() * each.element_size()
        found.append(flat[:size].clone().view(each.dtype).view(each.shape))
        flat = flat[size:]
    return found


def moved(tensors: list[Tensor], ring: Ring, rank: int) -> list[Tensor]:
    """Those of the process before, in exchange for these."""
    given: list[Tensor | None] = list(tensors)
    return [each for each in arrived(sent(given, ring, rank), given) if each is not None]
