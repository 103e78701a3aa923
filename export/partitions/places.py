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
class Everyone:
    """All processes that share a model.

    Attributes:
        members: their places in torch.distributed.
        groups: this process's, one for each dimension; what goes through one after the other reaches all.
    """

    members: tuple[int, ...]
    groups: tuple[ProcessGroup, ...]

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return self.members.index(dist.get_rank())


@dataclass(frozen=True)
class Place:
    """One process among those that share a model.

    Attributes:
        everyone: that shares it.
        along: the processes that differ from this one in one coordinate only, by the mesh's dimension.
        at: its coordinates.
        timeout: how long processes wait for one another.
    """

    everyone: Everyone
    along: Mapping[str, ProcessGroup]
    at: Mapping[str, int]
    timeout: timedelta

    @property
    def stage(self) -> int:
        """The pipeline stage that it runs."""
        return self.at.get(STAGES, 0)


def everyone_on(mesh: DeviceMesh | None) -> Everyone:
    """The processes of a mesh's dimensions "stages" and "sequence", or all there are.

    Raises:
        PartitionError: the mesh has neither.
    """
    if mesh is None:
        assert dist.group.WORLD is not None
        return Everyone(tuple(range(dist.get_world_size())), (dist.group.WORLD,))
    names = _named(mesh)
    if not names:
        raise PartitionError(f"the mesh has none of the dimensions {STAGES!r} and {MESH_DIM!r}: {mesh.mesh_dim_names}")
    return Everyone(tuple(mesh[names].mesh.flatten().tolist()), tuple(map(mesh.get_group, names)))


def place_on(sizes: Mapping[str, int], mesh: DeviceMesh | None, everyone: Everyone, timeout: timedelta) -> Place:
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
    if len(sizes) == 1:
        return Place(everyone, dict.fromkeys(sizes, everyone.groups[0]), dict.fromkeys(sizes, everyone.rank), timeout)
    places = torch.tensor(everyone.members).view(*sizes.values())
    along = {}
    for dim, name in enumerate(sizes):
        for members in places.movedim(dim, -1).flatten(0, -2).tolist():
            group = dist.new_group(members, timeout=timeout)  # all processes make all groups, in this order
            if dist.get_rank() in members:
                assert isinstance(group, ProcessGroup)
                along[name] = group
    at = (places == dist.get_rank()).nonzero()[0].tolist()
    return Place(everyone, along, dict(zip(sizes, at, strict=True)), timeout)


def problem_of(mesh: DeviceMesh | None, sizes: Mapping[str, int]) -> str:
    """Why a mesh is not the one that a model was partitioned for, or ""."""
    if mesh is None:
        return ""
    found = {name: mesh[name].size() for name in _named(mesh)}
    if math.prod(found.values()) != math.prod(sizes.values()):
        return ""  # the number of processes says it
    wanted = {name: sizes.get(name, 1) for name in found.keys() | sizes.keys()}
    if {name: found.get(name) for name in wanted} == wanted:
        return ""
    return f"the model was partitioned for a mesh of {dict(sizes)}, this one is of {found}"


def _named(mesh: DeviceMesh) -> tuple[str, ...]:
    return tuple(name for name in mesh.mesh_dim_names or () if name in (STAGES, MESH_DIM))
