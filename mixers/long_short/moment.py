"""What a Long-Short stream knows of the newest token by its time alone: the same in every layer of a model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.eager import untraced
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.memory import Memory
from remixer.mixers.long_short.whole import kept


class Rings(NamedTuple):
    """What a moment depends on beside the time.

    Attributes:
        config: of the mixer.
        align: windows start at a multiple of so many tokens.
        left: how far back the replaced attention saw, or None.
        window: how many tokens are kept.
        levels: of the memory; 0 if there are no summaries.
        nodes: how many of a level are kept.
        device: of the state.
    """

    config: LongShort
    align: int
    left: int | None
    window: int
    levels: int
    nodes: int
    device: torch.device

    @classmethod
    def of(cls, state: State, config: LongShort, align: int, left: int | None) -> Rings:
        """Those of a state."""
        levels, nodes = state["mass"].shape[2:4] if "mass" in state else (0, 0)
        return cls(config, align, left, state["key"].shape[2], levels, nodes, state["time"].device)


class Moment(NamedTuple):
    """Of the newest token, at a time.

    Attributes:
        slot: (1,), where it is kept.
        near: (window,) bool, which of the tokens that are kept are in its window.
        start: () where its window starts.
        place: (levels,), where the node of each level is kept that it is in, levels one after the other.
        fresh: (levels,) bool, whether it is the first in this node.
        held: (levels, nodes), which nodes are kept.
        seen: (levels, nodes) bool, which of them it sees.
    """

    slot: Tensor
    near: Tensor
    start: Tensor
    place: Tensor
    fresh: Tensor
    held: Tensor
    seen: Tensor


def moment_of(time: Tensor, rings: Rings) -> Moment:
    """Made once for all layers where the time can be asked for free: on a CPU, outside of graphs."""
    if untraced(time) and time.device.type == "cpu":
        return _at(int(time), rings)
    return _moment(time, rings)


@kept
def _at(time: int, rings: Rings) -> Moment:
    return _moment(torch.tensor(time), rings)


def _moment(time: Tensor, rings: Rings) -> Moment:
    config, device = rings.config, rings.device
    age = (time - torch.arange(rings.window, device=device)) % rings.window
    first = time - config.window + 1
    start = first.div(rings.align, rounding_mode="floor") * rings.align
    near = age <= time - start
    if rings.left is not None:
        near = near & (age <= rings.left)
    slot, nothing = (time % rings.window).view(1), torch.zeros(0, dtype=torch.int64, device=device)
    if not rings.levels:
        return Moment(slot, near, start, nothing, nothing.bool(), nothing[None], nothing[None].bool())
    level = torch.arange(rings.levels, device=device)
    sizes = torch.tensor([config.segment << each for each in range(rings.levels)], device=device)
    node = time.div(sizes, rounding_mode="floor")
    place = node % rings.nodes
    held = node[:, None] - (place[:, None] - torch.arange(rings.nodes, device=device)) % rings.nodes
    memory = Memory(config.memory, config.per_size, rings.nodes, rings.levels)
    bounds = memory.visible(first.div(config.segment, rounding_mode="floor"))
    seen = torch.stack([(held[i] >= oldest) & (held[i] < end) for i, (oldest, end) in enumerate(bounds)])
    return Moment(slot, near, start, place + level * rings.nodes, time % sizes == 0, held, seen)
