"""Shapes of what stages send to each other, from those of the model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from remixer.export.partitions.letters import value_of
from remixer.export.partitions.plan import MESH_DIM, ActivationPlan, PartitionPlan
from remixer.export.typed import dtype_of
from remixer.mixers.distributed.layout import part_size


def letters_in(plan: PartitionPlan, leaves: Sequence[Any]) -> dict[str, int]:
    """The sizes that the plan has letters for, in these inputs."""
    named = dict(zip(plan.inputs, leaves, strict=True))
    return {letter: int(named[name].shape[dim]) for letter, (name, dim) in plan.sizes.items()}


def shape_on_a_process(plan: PartitionPlan, activation: ActivationPlan, letters: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that an activation has on each process, which may have a part of the tokens only."""
    shape = [value_of(size, letters) for size in activation.shape]
    if activation.spread is not None:
        tokens = value_of(plan.tokens, letters)
        own = part_size(tokens, plan.mesh.get(MESH_DIM, 1), plan.layout)
        shape[activation.spread] = shape[activation.spread] // tokens * own
    return tuple(shape)


def like(plan: PartitionPlan, activation: ActivationPlan, letters: Mapping[str, int]) -> torch.Tensor:
    """A tensor without data of an activation's shape and dtype."""
    return torch.empty(shape_on_a_process(plan, activation, letters), dtype=dtype_of(activation.dtype), device="meta")
