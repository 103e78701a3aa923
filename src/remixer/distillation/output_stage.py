"""Output distillation: the rewritten model as a whole learns to give what the original gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from remixer.distillation.errors import TransferError
from remixer.distillation.losses import Loss, existing, negligible, pace
from remixer.distillation.low_rank import Adapters
from remixer.distillation.stage import Stage
from remixer.mixers.precision import at_least_float32
from remixer.passes.operands import projections
from remixer.passes.sites import Site
from remixer.remixed import Remixed
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program

WARM_UP = 5
ADAPTERS, OWN = 4e-4, 0.4  # learning rate of adapters; of mixers, as a share of what they learn with at their sites
TABLES = 1e-2  # of tables, as a share of the root of their mean square
TABLE = "table of positions: "  # in the names of parameters, where no site's name can begin like that


class OutputStage(Stage):
    """The mixers, low-rank adapters on the projections around them, and stretched tables are trained end to end.

    The model's other weights don't move until `settle` merges the adapters.

    Args:
        original: the teacher.
        remixed: the model that learns.
        sites: whose mixers do.
        loss: of the outputs.
        rank: of the adapters; 0 for none.
        seed: of the adapters' start.
        tables: names of parameters that are trained as they are: of positions, stretched by interpolation.
    """

    name = "outputs"

    def __init__(
        self,
        original: Program,
        remixed: Remixed,
        sites: Iterable[Site],
        loss: Loss,
        rank: int,
        seed: int,
        tables: Iterable[str] = (),
    ) -> None:
        self.original, self.remixed, self.loss = original.graph_module, remixed, loss
        sites = list(sites)
        names = dict.fromkeys(name for site in sites for name in projections(site, remixed)) if rank else {}
        self.adapters = Adapters(remixed, names, rank, seed)
        self.negligible = negligible(loss)
        self._pace = 1.0
        self._mixers = {site.name: site.mixer for site in sites}
        # Of lower precision than float32, copies in float32 are trained: small steps would be rounded away.
        self._masters: dict[str, nn.Parameter] = {}
        own = [
            (f"{site.name}.{name}", f"{site.node.target}.{name}", parameter)
            for site in sites
            for name, parameter in site.mixer.named_parameters()
        ]
        own += [(f"{TABLE}{name}", name, remixed.get_parameter(name)) for name in tables]
        trained: dict[str, nn.Parameter] = {}
        for name, path, parameter in own:
            trained[name] = parameter
            if parameter.dtype != at_least_float32(parameter.dtype):
                self._masters[path] = trained[name] = nn.Parameter(parameter.detach().float())
        self.parameters = {**trained, **{f"adapters.{name}": each for name, each in self.adapters.named_parameters()}}
        self.groups = {"outputs": tuple(self.parameters)}
        if not self.parameters:
            raise TransferError("there is nothing to train: no mixer has parameters, and rank=0 asks for no adapters")
        self._required = {id(each): each.requires_grad for each in remixed.parameters()}
        moving = {id(each) for each in trained.values()}
        for parameter in remixed.parameters():
            parameter.requires_grad_(id(parameter) in moving)

    def rate(self, name: str) -> float:
        """See Stage.rate."""
        if name.startswith("adapters."):
            return ADAPTERS
        if name.startswith(TABLE):
            return TABLES * float(self.parameters[name].detach().square().mean().sqrt())
        site = next(site for site in self._mixers if name.startswith(f"{site}."))
        return OWN * self._mixers[site].learning_rate(name.removeprefix(f"{site}."))

    def factor(self, progress: float, step: int) -> float:
        """See Stage.factor: a straight line to zero after a few steps of warming up, by the loss's pace."""
        return self._pace * min(1.0, (step + 1) / WARM_UP) * max(0.0, 1.0 - progress)

    def learn(self, call: Call) -> dict[str, float]:
        """See Stage.learn."""
        error = self._error(call)
        if error.requires_grad:
            error.backward()
        return {"outputs": float(error.detach())}

    def measure(self, call: Call) -> dict[str, float]:
        """See Stage.measure."""
        with torch.no_grad():
            return {"outputs": float(self._error(call))}

    def settle(self) -> None:
        """See Stage.settle."""
        self.adapters.merge()
        with torch.no_grad():
            for path, master in self._masters.items():
                self.remixed.get_parameter(path).copy_(master)

    def close(self) -> None:
        """See Stage.close: the model's weights are as trainable as they were before."""
        for parameter in self.remixed.parameters():
            parameter.requires_grad_(self._required[id(parameter)])
            parameter.grad = None

    def _error(self, call: Call) -> torch.Tensor:
        args, kwargs = call
        with torch.no_grad():
            wanted = self.original(*args, **kwargs)
        self._pace = pace(self.loss, wanted)
        lowered = {path: each.to(self.remixed.get_parameter(path).dtype) for path, each in self._masters.items()}
        given: Any = functional_call(self.remixed, {**self.adapters.adapted(), **lowered}, args, kwargs)
        return self.loss(given, wanted, existing(call))
