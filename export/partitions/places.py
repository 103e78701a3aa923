"""Where a process stands on the mesh of all that share a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from remixer.export.errors import PartitionError
from remixer.export.partitions.plan import MESH_DIM, STAGES


@dataclass(frozen=True)
class Place:
    """One process among those that share a model.

    Attributes:
        everyone: that shares it.
        along: the processes that differ from this one in one coordinate only, by the mesh's dimension.
        at: its coordinates.
        timeout: how long processes wait for one another.
    """

    everyone: ProcessGroup
    along: Mapping[str, ProcessGroup]
    at: Mapping[str, int]
    timeout: timedelta

    @property
    def rank(self) -> int:
        """Its place among all."""
        return dist.get_rank(self.everyone)

    @property
    def stage(self) -> int:
        """The pipeline stage that it runs."""
        return self.at.get(STAGES, 0)


def all_of(mesh: DeviceMesh | None, timeout: timedelta) -> ProcessGroup:
    """The processes that share a model: those of a mesh's dimensions "stages" and "sequence", or all there are.

    Raises:
        PartitionError: the mesh has neither.
    """
    if mesh is None:
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    names = _named(mesh)
    if len(names) == 1:
        return mesh.get_group(names[0])
    return _group(mesh[names].mesh.flatten().tolist(), timeout)


def place_on(
    sizes: Mapping[str, int], mesh: DeviceMesh | None, everyone: ProcessGroup, timeout: timedelta
) -> Place:
    """This process's place, and its groups. Collective, if there is no mesh.

    Args:
        sizes: of the plan's mesh, by dimension.
        mesh: that has these dimensions, if these processes are not all there are.
        everyone: the processes.
        timeout: how long they wait for one another in the groups that are made here.
    """
    if mesh is not None:
        own = {name: mesh.get_group(name) for name in sizes}
        return Place(everyone, own, {name: mesh.get_local_rank(name) for name in sizes}, timeout)
    ranks = dist.get_process_group_ranks(everyone)
    places = torch.tensor(ranks).view(*sizes.values())
    mine = dict(zip(sizes, (places == dist.get_rank()).nonzero()[0].tolist(), strict=True))
    along = {}
    for dim, name in enumerate(sizes):
        others = places[tuple(slice(None) if index == dim else at for index, at in enumerate(mine.values()))].tolist()
        along[name] = everyone if others == ranks else _group(others, timeout)
    return Place(everyone, along, mine, timeout)


def holders(place: Place, stages: tuple[int, ...]) -> ProcessGroup:
    """The processes of these stages that have this one's part of the tokens. Collective among them."""
    ranks = dist.get_process_group_ranks(place.along[STAGES])
    return _group([ranks[stage] for stage in stages], place.timeout)


def problem_of(mesh: DeviceMesh | None, sizes: Mapping[str, int]) -> str:
    """Why a mesh is not the one that a model was partitioned for, or ""."""
    found = {name: mesh.size(_dims(mesh).index(name)) for name in _named(mesh)} if mesh is not None else None
    if found is None or {name: found.get(name) for name in sizes} == dict(sizes):
        return ""
    if math.prod(found.values()) != math.prod(sizes.values()):
        return ""  # the number of processes says it
    return f"the model was partitioned for a mesh of {dict(sizes)}, this one is of {found}"


def _named(mesh: DeviceMesh) -> tuple[str, ...]:
    names = tuple(name for name in _dims(mesh) if name in (STAGES, MESH_DIM))
    if not names:
        raise PartitionError(f"the mesh has none of the dimensions {STAGES!r} and {MESH_DIM!r}, but {_dims(mesh)}")
    return names


def _dims(mesh: DeviceMesh) -> tuple[str, ...]:
    return tuple(mesh.mesh_dim_names or ())


def _group(ranks: list[int], timeout: timedelta) -> ProcessGroup:
    """A group that its own members make, whatever the others do."""
    group = dist.new_group(ranks, timeout=timeout, use_local_synchronization=True)
    assert isinstance(group, ProcessGroup)
    return group
