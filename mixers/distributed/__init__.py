"""Exact attention by several processes, each of which has a part of the tokens, the heads or the rows."""

from remixer.mixers.distributed.cost import Choice, Cost, Machine, Task, choose, cost
from remixer.mixers.distributed.mixer import Distributed, DistributedMixer

__all__ = ["Choice", "Cost", "Distributed", "DistributedMixer", "Machine", "Task", "choose", "cost"]
