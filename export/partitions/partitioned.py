"""A partitioned model on one of the processes that share it."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup

from remixer.export.errors import PartitionError
from remixer.export.partitions.agreement import agree
from remixer.export.partitions.plan import PartitionPlan
from remixer.export.partitions.survivors import missing
from remixer.rewrite.agreement import first_line
from remixer.rewrite.inputs import tensors_in


class Partitioned(nn.Module):
    """Called like the model it was made of, by all processes, each with the same whole inputs.

    It trains: where all processes compute the same loss, gradients averaged over them, as DistributedDataParallel does,
    are those of one process.

    Args:
        module: the graph of this process.
        plan: how the model is spread.
        group: the processes.
        rank: this one's place.
        timeout: how long processes wait for one another.
    """

    def __init__(
        self, module: nn.Module, plan: PartitionPlan, group: ProcessGroup, rank: int, timeout: timedelta
    ) -> None:
        super().__init__()
        self.timeout = timeout
        self.module, self.plan = module, plan
        self._group, self._rank, self._calls = (group,), rank, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives.

        Raises:
            PartitionError: processes were given inputs of different shapes; or one of them is gone, or hangs.
        """
        self._calls += 1
        shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors_in((args, kwargs))]
        try:
            self._agree(shapes)
            return self.module(*args, **kwargs)
        except PartitionError:
            raise
        except RuntimeError as error:
            gone = missing(self._group[0], self._rank, self._calls, self.timeout)
            if not gone:
                raise
            who = ", ".join(map(str, gone))
            raise PartitionError(
                f"process {self._rank} can't go on: process {who} is gone or hangs ({first_line(error)})"
            ) from error

    def _agree(self, shapes: list[Any]) -> None:
        """Different shapes would abort a process from within: they are compared before."""
        group = self._group[0]
        mine = int.from_bytes(hashlib.sha256(repr(shapes).encode()).digest()[:7], "big")
        device = next((each.device for each in self.module.parameters()), torch.device("cpu"))
        number = torch.tensor([mine], device=device)
        found = [torch.zeros_like(number) for _ in range(dist.get_world_size(group))]
        dist.all_gather(found, number, group)
        if any(int(each) != mine for each in found):
            agree(group, {"shapes": shapes}, "run the partitioned model")
