"""Low-rank adapters (Hu et al., 2021, "LoRA", section 4.1) on the projections around rewritten attentions."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

SCALE = 2.0  # alpha / rank


class Adapters(nn.Module):
    """W + 2 B A for some weights of a module: A is random, B zero, so that nothing changes at the start.

    They are kept apart until `merge`. Weights are found by their names in the graph, so that peft, which wraps modules
    of its known classes, has nothing to hold on to.

    Args:
        module: whose weights are adapted.
        names: of weights of two dimensions.
        rank: of every change.
        seed: of the random numbers.
    """

    def __init__(self, module: nn.Module, names: Iterable[str], rank: int, seed: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        self._weights = {name: module.get_parameter(name) for name in self.names}
        generator = torch.Generator().manual_seed(seed)
        for weight in self._weights.values():
            rows, columns = weight.shape
            bound = 1.0 / math.sqrt(columns)  # of kaiming_uniform_ with a = sqrt(5), as peft has it
            start = (torch.rand(rank, columns, generator=generator) * 2.0 - 1.0) * bound
            self.down.append(nn.Parameter(start.to(weight.device)))
            self.up.append(nn.Parameter(torch.zeros(rows, rank, device=weight.device)))

    def adapted(self) -> dict[str, Tensor]:
        """The changed weights by name, in their own dtype."""
        changed = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            weight = self._weights[name].detach()
            changed[name] = weight + (SCALE * (up @ down)).to(weight.dtype)
        return changed

    @torch.no_grad()
    def merge(self) -> None:
        """Change the weights themselves."""
        for name, weight in self.adapted().items():
            self._weights[name].copy_(weight)
