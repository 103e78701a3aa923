"""`load_partition`: what `Partition.save` wrote, as a module on each of the processes that share it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives
from torch import fx
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

import remixer.mixers.distributed  # noqa: F401  registers the operators of the graph
from remixer.export.artifacts.folder import reading
from remixer.export.artifacts.tensors import read_tensors
from remixer.export.errors import ArtifactError, PartitionError
from remixer.export.files import digest
from remixer.export.partitions.agreement import agree
from remixer.export.partitions.partitioned import Partitioned
from remixer.export.partitions.pipeline import Pipeline
from remixer.export.partitions.places import everyone_on, place_on, problem_of
from remixer.export.partitions.plan import STAGES, PartitionPlan
from remixer.export.partitions.stored import read_graph
from remixer.export.typed import TypedError
from remixer.export.versions import versions
from remixer.rewrite.devices import move_constants

TIMEOUT = timedelta(minutes=5)


def load_partition(
    folder: str | os.PathLike[str],
    *,
    mesh: DeviceMesh | None = None,
    device: str | torch.device | None = None,
    timeout: timedelta = TIMEOUT,
    microbatches: int | None = None,
) -> Partitioned:
    """A partitioned model on this process; all processes that share it have to call this.

    Before anything is computed they make sure that they are as many as the plan says, of one version of remixer and
    torch, and read the same graph and weights: if not, all of them get an error that names the one that differs.

    Args:
        folder: that `Partition.save` wrote.
        mesh: whose dimensions "stages" and "sequence" are those of the plan, if these processes are not all there are.
        device: to run on; this process's GPU if there are any, else the CPU.
        timeout: how long processes wait for one another. Where torch.distributed is not initialised yet it is, from
            what torchrun says, with this timeout, and NCCL on GPUs or gloo on CPUs; where it is, say what it has.
        microbatches: of equal size, that each batch goes through the pipeline in, if there is one. By default as many
            as there are stages where their number divides the batch, else one.

    Raises:
        PartitionError: a process differs, or can't read the folder; or torch.distributed can't be initialised.
        ValueError: microbatches is less than 1.
    """
    if microbatches is not None and microbatches < 1:
        raise ValueError(f"microbatches must be at least 1, got {microbatches}")
    folder = Path(folder)
    device = _device() if device is None else torch.device(device)
    _initialise(device, timeout)
    everyone = everyone_on(mesh)
    stage = 0 if mesh is None or STAGES not in (mesh.mesh_dim_names or ()) else mesh.get_local_rank(STAGES)
    try:
        plan = PartitionPlan.read(folder)
        if mesh is None:
            stage = everyone.rank * max(1, len(plan.stages)) // len(everyone.members)
        mine: dict[str, Any] = {
            "number of processes": len(everyone.members),
            "versions": versions(),
            "number of microbatches": microbatches,
            "plan": plan.to_dict(),
        }
        problem = _problem(plan, mine) or problem_of(mesh, plan.mesh) or _changed(plan, folder, stage)
        module = fx.GraphModule({}, fx.Graph()) if problem else _loaded(folder, plan.files(stage), device)
    except (PartitionError, ArtifactError, TypedError, OSError) as error:
        mine, problem = {}, str(error)
    agree(everyone, {"problem": problem} if problem else mine, f"load {folder}")
    place = place_on(plan.mesh, mesh, everyone, timeout)
    module = _bound(module, place.along)
    return Partitioned(module, plan, place, Pipeline(module, plan, place, microbatches) if plan.stages else None)


def _problem(plan: PartitionPlan, mine: dict[str, Any]) -> str:
    """What this process knows to be wrong by itself, or ""."""
    if mine["number of processes"] != plan.ranks:
        return f"the model was partitioned for {plan.ranks} processes, these are {mine['number of processes']}"
    made, here = plan.versions["torch"], versions()["torch"]
    if made.split(".")[:2] != here.split(".")[:2]:
        return f"the graph was written by torch {made}, this is {here}: partition the model again"
    return ""


def _changed(plan: PartitionPlan, folder: Path, stage: int) -> str:
    """Which of the files that this process reads is not the plan's, or ""."""
    for file in plan.files(stage):
        if not (folder / file).is_file() or digest(folder / file) != plan.fingerprint[file]:
            return f"{file} is not the one that was written with the plan"
    return ""


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def _initialise(device: torch.device, timeout: timedelta) -> None:
    if dist.is_initialized():
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise PartitionError(
            "load_partition runs inside torchrun, which tells each process its place; start the script with "
            "torchrun --nproc-per-node N, or initialise torch.distributed before"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)


def _loaded(folder: Path, files: tuple[str, str], device: torch.device) -> fx.GraphModule:
    """A graph with its weights.

    Raises:
        ArtifactError: a file is not one that `Partition.save` writes.
    """
    graph, tensors = files
    with reading(folder / tensors):
        weights = read_tensors(folder / tensors)
    with reading(folder / graph):
        module = read_graph(folder / graph, weights)
    module.to(device)
    move_constants(module, device)
    return module


def _bound(module: fx.GraphModule, along: Mapping[str, ProcessGroup]) -> fx.GraphModule:
    """The graph with the groups' own names in the place of the mesh's dimensions."""
    names = {name: group.group_name for name, group in along.items()}

    def named(value: Any) -> Any:
        return names.get(value, value) if isinstance(value, str) else value

    for node in module.graph.nodes:
        if getattr(node.target, "namespace", "") in ("_c10d_functional", "_c10d_functional_autograd", "remixer"):
            node.args = tuple(map(named, node.args))
            node.kwargs = {key: named(value) for key, value in node.kwargs.items()}
    module.recompile()
    return module
