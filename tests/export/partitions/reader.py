"""A small decoder or encoder, and what tests let each process do with its parts."""

import math
import os
import shutil
import time
from datetime import timedelta

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import remixer
from remixer import LongShort
from remixer.export import load_partition, partition


class Reader(nn.Module):
    def __init__(self, causal=True, layers=2):
        super().__init__()
        self.causal = causal
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 50)
        self.head.weight = self.tokens.weight  # tied

    def forward(self, ids, mask):
        place = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.tokens(ids) + self.places(place)
        seen = mask[:, None, None, :].bool()
        if self.causal:
            seen = seen & (place <= place[:, None])
        for qkv, out in zip(self.qkv, self.out, strict=True):
            query, key, value = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in qkv(hidden).chunk(3, -1))
            scores = query @ key.transpose(-1, -2) / math.sqrt(8)
            mixed = F.softmax(scores.masked_fill(~seen, -math.inf), -1) @ value
            hidden = hidden + out(mixed.transpose(1, 2).flatten(2))
        hidden = self.norm(hidden)
        return {"logits": self.head(hidden), "mean": hidden.mean(1)}


def inputs(T=12, B=2):
    torch.manual_seed(T)
    return {"ids": torch.randint(0, 50, (B, T)), "mask": torch.ones(B, T, dtype=torch.long)}


def outputs(folder, *shapes):
    """What a loaded partition gives for inputs of these shapes."""
    model = load_partition(folder)
    with torch.no_grad():
        return [{name: each.clone() for name, each in model(**inputs(*shape)).items()} for shape in shapes]


def gradients(folder, shape):
    """Of a loss that all processes compute, averaged as DistributedDataParallel does."""
    model = load_partition(folder)
    parallel = nn.parallel.DistributedDataParallel(model)
    found = parallel(**inputs(*shape))
    (found["logits"].square().mean() + found["mean"].sum()).backward()
    return {name.removeprefix("module."): each.grad for name, each in model.named_parameters()}


def stage_gradients(folder, shape, microbatches=None):
    """The same with the model's own average, and twice, since gradients add up."""
    model = load_partition(folder, microbatches=microbatches)
    for _ in range(2):
        found = model(**inputs(*shape))
        (0.5 * (found["logits"].square().mean() + found["mean"].sum())).backward()
    model.average_gradients()
    return {name.removeprefix("module."): each.grad for name, each in model.named_parameters()}


def other_gradients(folder, how):
    """Gradients that come in another way: with weights that stay, by DistributedDataParallel, on a mesh of others."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stages", "sequence")) if how == "mesh" else None
    model = load_partition(folder, mesh=mesh, microbatches=3 if how == "microbatches" else None)
    run, kept = model, {}
    if how == "frozen" and model.place.stage == 0:
        for weight in model.parameters():
            weight.requires_grad_(False)
    if how == "parallel":
        run = nn.parallel.DistributedDataParallel(model, process_group=model.place.along["sequence"])
    found = run(**inputs(9, 6))
    (found["logits"].square().mean() + found["mean"].sum()).backward()
    if how != "parallel":
        model.average_gradients()
    for name, weight in model.module.named_parameters():
        # Of a tied weight that stays in one stage the other has its own part only.
        if weight.grad is not None and not (how == "frozen" and name in model.plan.stages[1].tied):
            kept[name] = weight.grad
    return kept


def input_gradient(folder, x):
    """Of an input."""
    x = x.clone().requires_grad_()
    load_partition(folder)(src=x).square().mean().backward()
    return x.grad


def stage_faults(folder, other, how):
    """An error of what process 1 does otherwise, or all do wrongly."""
    rank = torch.distributed.get_rank()
    try:
        if how == "weights" and rank == 1:
            shutil.copytree(folder, other / "bad")
            folder = other / "bad"
            file = next(folder.glob("stage1.*.safetensors"))
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        number = {"microbatches": 2, "number": 1 + rank}.get(how)
        model = load_partition(folder, microbatches=number)
        model(**inputs(12 + (rank if how == "shapes" else 0), 3))
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def one_stage_leaves(folder, how, moment):
    """An error on those who stay, where process 1 ends or stops in the middle of a call, or before going backward."""
    rank, model = torch.distributed.get_rank(), load_partition(folder, timeout=timedelta(seconds=30))
    model(**inputs(12))["mean"].sum().backward()
    found = model(**inputs(12)) if moment == "backward" else None
    if rank == 1:
        if how == "killed":
            os._exit(1)
        time.sleep(60)
        return None
    start = time.monotonic()
    try:
        (model(**inputs(12)) if found is None else found)["mean"].sum().backward()
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return None


def different_shapes(folder):
    """An error, where one process is given longer inputs."""
    rank, model = torch.distributed.get_rank(), load_partition(folder)
    try:
        model(**inputs(12 + rank))
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def refused(folder, folders=None):
    """An error of loading."""
    rank = torch.distributed.get_rank()
    try:
        load_partition(folder if folders is None else folders[rank])
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def one_leaves(folder, how):
    """An error on those who stay, where process 1 ends or stops in the middle of a call."""
    rank, model = torch.distributed.get_rank(), load_partition(folder, timeout=timedelta(seconds=6))
    model(**inputs(12))
    if rank == 1:
        if how == "killed":
            os._exit(1)
        time.sleep(60)
        return None
    start = time.monotonic()
    try:
        model(**inputs(12))
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return None


def with_long_short(causal):
    """A reader with an exact attention and a Long-Short one, the same in all processes."""
    torch.manual_seed(0)
    layer = LongShort(window=3, segment=2, rank=2, sinks=2, dual_norm="paper" if causal else "none")
    small = remixer.remix(Reader(causal).eval(), {"attention": layer, "*": "distributed"}, inputs())
    for name, weight in small.named_parameters():
        if "mixer" in name:
            nn.init.normal_(weight, std=0.3)
    return small.eval()


def in_this_process(causal, given):
    """What a spread graph gives, never written, and its averaged gradients in the order of its parameters."""
    ranks = torch.distributed.get_world_size()
    model = partition(with_long_short(causal), ranks, scheme="all_gather").graph_module
    found = model(**given)
    (found["logits"].square().mean() + found["mean"].sum()).backward()
    grads = [each.grad for each in model.parameters()]
    for grad in grads:
        torch.distributed.all_reduce(grad, torch.distributed.ReduceOp.SUM)
        grad /= ranks
    return {name: each.detach() for name, each in found.items()}, grads
