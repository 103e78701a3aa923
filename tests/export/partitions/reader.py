"""A small decoder or encoder, and what tests let each process do with its parts."""

import math
import os
import time
from datetime import timedelta

import torch
import torch.nn.functional as F
from torch import nn

from remixer.export import load_partition


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
