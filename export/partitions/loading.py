"""`load_partition`: what `Partition.save` wrote, as a module on each of the processes that share it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives
from torch import fx, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

import remixer.mixers.distributed  # noqa: F401  registers the operators of the graph
from remixer.export.errors import PartitionError
from remixer.export.partitions.agreement import agree
from remixer.export.partitions.partitioned import Partitioned
from remixer.export.partitions.plan import GRAPH, MESH_DIM, WEIGHTS, PartitionPlan, digest, versions
from remixer.rewrite.modules import keep_persistence

TIMEOUT = timedelta(minutes=5)


def load_partition(
    folder: str | os.PathLike[str],
    *,
    mesh: DeviceMesh | None = None,
    device: str | torch.device | None = None,
    timeout: timedelta = TIMEOUT,
) -> Partitioned:
    """A partitioned model on this process; all processes that share it have to call this.

    Before anything is computed they make sure that they are as many as the plan says, of one version of remixer and
    torch, and read the same graph and weights: if not, all of them get an error that names the one that differs.

    Args:
        folder: that `Partition.save` wrote.
        mesh: whose dimensions have the plan's names, if these processes are not all there are.
        device: to run on; this process's GPU if there are any, else the CPU.
        timeout: how long processes wait for one another. Where torch.distributed is not initialised yet it is, from
            what torchrun says, with this timeout, and NCCL on GPUs or gloo on CPUs; where it is, say what it has.

    Raises:
        PartitionError: a process differs, or can't read the folder; or torch.distributed can't be initialised.
    """
    folder = Path(folder)
    device = _device() if device is None else torch.device(device)
    _initialise(device, timeout)
    group = _group(mesh)
    rank = dist.get_rank(group)
    try:
        plan = PartitionPlan.read(folder)
        mine: dict[str, Any] = {
            "number of processes": dist.get_world_size(group),
            "versions": versions(),
            "fingerprint": {file: digest(folder / file) for file in (GRAPH, WEIGHTS)},
            "plan": plan.to_dict(),
        }
        problem = _problem(plan, mine)
    except (PartitionError, OSError) as error:
        mine, problem = {}, str(error)
    agree(group, {"problem": problem} if problem else mine, f"load {folder}")
    module = _bound(_loaded(folder, device), plan.mesh, group)
    return Partitioned(module, plan, group, rank, timeout)


def _problem(plan: PartitionPlan, mine: dict[str, Any]) -> str:
    """What this process knows to be wrong by itself, or ""."""
    if mine["number of processes"] != plan.ranks:
        return f"the model was partitioned for {plan.ranks} processes, these are {mine['number of processes']}"
    for file, found in plan.fingerprint.items():
        if mine["fingerprint"].get(file) != found:
            return f"{file} is not the one that was written with the plan"
    made, here = plan.versions["torch"], versions()["torch"]
    if made.split(".")[:2] != here.split(".")[:2]:
        return f"the graph was written by torch {made}, this is {here}: partition the model again"
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


def _group(mesh: DeviceMesh | None) -> ProcessGroup:
    group = dist.group.WORLD if mesh is None else mesh.get_group(MESH_DIM)
    assert group is not None
    return group


def _loaded(folder: Path, device: torch.device) -> Any:
    """The graph with its weights."""
    from safetensors.torch import load_file

    try:
        root = torch.export.load(folder / GRAPH).module(check_guards=False)
    except RuntimeError as error:
        raise PartitionError(f"torch.export can't read {folder / GRAPH}: {error}") from error
    assert isinstance(root, fx.GraphModule)
    module = fx.GraphModule(root, root.graph)  # without the checks of sizes, which the graph holds beyond
    keep_persistence(root, module)
    weights = load_file(folder / WEIGHTS, device=str(device))
    missing = {name for name, _ in module.named_parameters()} - weights.keys()
    if missing:
        raise PartitionError(f"{folder / WEIGHTS} lacks {', '.join(sorted(missing)[:3])}")
    for name, tensor in weights.items():
        owner, _, own = name.rpartition(".")
        before = getattr(module.get_submodule(owner), own)
        if isinstance(before, nn.Parameter):
            tensor = nn.Parameter(tensor, before.requires_grad)
        setattr(module.get_submodule(owner), own, tensor)
    return module.to(device)


def _bound(module: Any, mesh: dict[str, int], group: ProcessGroup) -> nn.Module:
    """The graph with the group's own name in the place of the mesh dimension's."""
    names = dict.fromkeys(mesh, group.group_name)

    def named(value: Any) -> Any:
        return names.get(value, value) if isinstance(value, str) else value

    for node in module.graph.nodes:
        if getattr(node.target, "namespace", "") in ("_c10d_functional", "_c10d_functional_autograd", "remixer"):
            node.args = tuple(map(named, node.args))
            node.kwargs = {key: named(value) for key, value in node.kwargs.items()}
    module.recompile()
    bound: nn.Module = module
    return bound
