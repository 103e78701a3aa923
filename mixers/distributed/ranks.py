"""The processes that share a sequence, by the name of a dimension of their mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d

ALONE = "alone"
c10d: Any = distributed_c10d  # whose table of groups by name has no public way in


@dataclass(frozen=True)
class Ranks:
    """A process group as graphs know it.

    Attributes:
        name: of the group, for functional collectives.
        size: P, number of its processes.
    """

    name: str
    size: int


_BOUND: dict[str, Ranks] = {}


def ranks_of(dim: str) -> Ranks:
    """The processes along a dimension of the mesh: those that `bound` says, else all, else this one alone."""
    if dim in _BOUND:
        return _BOUND[dim]
    if dist.is_available() and dist.is_initialized():
        return ranks_in(dist.group.WORLD)
    return Ranks(ALONE, 1)


def ranks_in(group: ProcessGroup | None) -> Ranks:
    """A process group of torch.distributed."""
    assert group is not None
    return Ranks(group.group_name, dist.get_world_size(group))


@contextlib.contextmanager
def bound(dim: str, ranks: Ranks) -> Iterator[None]:
    """The processes along a dimension, for a while: also such as don't exist, to make a graph for them."""
    before = _BOUND.get(dim)
    _BOUND[dim] = ranks
    try:
        yield
    finally:
        if before is None:
            del _BOUND[dim]
        else:
            _BOUND[dim] = before


def rank_in(name: str) -> int:
    """Which of a group's processes this one is; the only one, if it is alone.

    Raises:
        RuntimeError: there is no group of this name.
    """
    if name == ALONE:
        return 0
    group: ProcessGroup = c10d._resolve_process_group(name)
    return dist.get_rank(group)
