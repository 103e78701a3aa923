"""All that could take the place of each attention, what it costs, and what it does to the outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from remixer.distillation.losses import Loss, existing, fitting_name
from remixer.mixers import Mixer, MixerConfig, Softmax
from remixer.mixers.registry import mixer_of
from remixer.passes.sites import Site
from remixer.passes.substitute import fitted
from remixer.passes.switches import with_switches
from remixer.planning.switch import Switch
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program

Cost = Literal["flops", "seconds"]
_KEPT = 2**31  # bytes of the original's outputs that are kept rather than made again


@dataclass(frozen=True)
class Unit:
    """What is replaced as one: an attention, or a key/value head of it and the query heads that read it.

    Attributes:
        site: its name.
        heads: the key/value heads, all of them or one.
    """

    site: str
    heads: tuple[int, ...]


class Candidates:
    """The original with a switch at every attention.

    Args:
        original: its attentions are sites.
        sites: those that may be replaced.
        configs: what could take their place.
    """

    def __init__(self, original: Program, sites: Sequence[Site], configs: Sequence[MixerConfig]) -> None:
        self.original, self.sites, self.configs = original, list(sites), list(configs)
        self.mixers: dict[str, dict[MixerConfig, Mixer]] = {}
        self.switches: dict[str, Switch] = {}
        for site in self.sites:
            fit = [config for config in configs if mixer_of(config).supports(site.spec, config) is None]
            self.mixers[site.name] = {config: fitted(site, config) for config in fit}
            self.switches[site.name] = Switch([site.mixer, *self.mixers[site.name].values()]).eval()
        modules: dict[str, nn.Module] = dict(self.switches)
        self._module = with_switches(original, modules).eval()
        self._wanted: dict[int, Any] = {}

    def choose(self, choice: Mapping[Unit, MixerConfig]) -> None:
        """Set the switches: these units to their configs, all else to the attention itself."""
        for switch in self.switches.values():
            switch.chosen = [0] * switch.spec.kv_heads
        for unit, config in choice.items():
            index = 1 + list(self.mixers[unit.site]).index(config)
            for head in unit.heads:
                self.switches[unit.site].chosen[head] = index

    @torch.no_grad()
    def harm(self, choice: Mapping[Unit, MixerConfig], calls: Sequence[Call], loss: Loss) -> float:
        """What a choice does to the outputs: the mean loss over some batches."""
        self.choose(choice)
        total = 0.0
        for index, (args, kwargs) in enumerate(calls):
            wanted = self._outputs(index, (args, kwargs))
            total += float(loss(self._module(*args, **kwargs), wanted, existing((args, kwargs))))
        return total / len(calls)

    def loss_name(self, loss: str | Loss, calls: Sequence[Call]) -> str:
        """What a plan calls the loss; "auto" by what it turns out to be."""
        if callable(loss):
            return getattr(loss, "__name__", "loss")
        return fitting_name(self._outputs(0, calls[0])) if loss == "auto" else loss

    def _outputs(self, index: int, call: Call) -> Any:
        """What the original gives for a batch."""
        if index in self._wanted:
            return self._wanted[index]
        args, kwargs = call
        found = self.original.graph_module(*args, **kwargs)
        held = [each for one in (*self._wanted.values(), found) for each in pytree.tree_leaves(one)]
        if sum(each.nbytes for each in held if isinstance(each, Tensor)) <= _KEPT:
            self._wanted[index] = found
        return found

    def costs(self, length: int, cost: Cost) -> dict[str, dict[MixerConfig | None, float]]:
        """What each site's attention (None) and each candidate costs at a length, of one sequence."""
        found: dict[str, dict[MixerConfig | None, float]] = {}
        known: dict[Any, float] = {}

        def one(mixer: Mixer) -> float:
            if cost == "flops":
                return mixer.flops(length)
            key = (type(mixer), mixer.config, mixer.spec)
            if key not in known:
                known[key] = _seconds(mixer, length)
            return known[key]

        for site in self.sites:
            costs: dict[MixerConfig | None, float] = {None: one(Softmax(site.spec))}
            costs |= {config: one(mixer) for config, mixer in self.mixers[site.name].items()}
            found[site.name] = costs
        return found


def _seconds(mixer: Mixer, length: int) -> float:
    """Of one pass over a sequence of random tokens, the better of two after one to warm up."""
    spec = mixer.spec
    weight = next(mixer.parameters(), torch.zeros(()))
    like = {"device": weight.device, "dtype": weight.dtype if weight.is_floating_point() else spec.dtype}
    shapes = {
        "query": (1, spec.heads, length, spec.head_dim),
        "key": (1, spec.kv_heads, length, spec.head_dim),
        "value": (1, spec.kv_heads, length, spec.value_dim),
        "source": (1, length, spec.source_dim or 1),
        "bias": (spec.heads, 2 * length - 1) if spec.bias == "offset" else (1, 1, length, length),
        "sink": (spec.heads,),
    }
    operands = {name: torch.randn(shapes[name], **like) for name in mixer.operands if name in shapes}  # type: ignore[call-overload]
    taken = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            mixer(**operands)
            if weight.is_cuda:
                torch.cuda.synchronize(weight.device)
            taken.append(time.perf_counter() - start)
    return min(taken[1:])
