"""Whether all processes are about to do the same: found out before the first tensor is sent."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from remixer.export.errors import PartitionError
from remixer.export.partitions.places import Everyone


def agree(everyone: Everyone, mine: dict[str, Any], what: str) -> None:
    """Compare what every process says. Collective.

    Args:
        everyone: the processes.
        mine: what this one says; under "problem" what it can't go on for.
        what: they are about to do, for the error.

    Raises:
        PartitionError: on all of them, if one has a problem or says something else than the first; it is named.
    """
    answers: list[Any] = [mine]
    for group in everyone.groups[::-1]:
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, answers, group)
        answers = [answer for each in found for answer in each]
    for rank, answer in enumerate(answers):
        if "problem" in answer:
            raise PartitionError(f"cannot {what}: process {rank} says: {answer['problem']}")
    first = answers[0]
    for rank, answer in enumerate(answers):
        for name in first:
            if answer.get(name) != first[name]:
                told = _difference(answer.get(name), first[name])
                raise PartitionError(f"cannot {what}: process {rank} has another {name} than process 0: {told}")


def same_everywhere(everyone: Everyone, number: int, device: torch.device) -> bool:
    """Whether all processes have the same number. Collective."""
    told = torch.tensor([number], device=device)
    for group in everyone.groups[::-1]:
        found = [torch.zeros_like(told) for _ in range(dist.get_world_size(group))]
        dist.all_gather(found, told, group)
        told = torch.cat(found)
    return bool((told == number).all())


def _difference(other: Any, first: Any) -> str:
    if isinstance(other, dict) and isinstance(first, dict):
        for key in first:
            if other.get(key) != first[key]:
                return f"{key}: {_difference(other.get(key), first[key])}"
    return f"{other} and {first}"
