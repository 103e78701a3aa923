"""Choosing what to replace: the least harm for what it saves first, measured again on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from remixer.mixers import MixerConfig
from remixer.planning.candidates import Unit

Choice = dict[Unit, MixerConfig]
Harm = Callable[[Mapping[Unit, MixerConfig]], float]


@dataclass(frozen=True)
class Limits:
    """When to stop; one of them is set.

    Attributes:
        cost: that may be left in all.
        harm: that may be done.
    """

    cost: float | None = None
    harm: float | None = None


@dataclass(frozen=True)
class Point:
    """A choice, with what it costs and what it harms."""

    choice: Choice
    cost: float
    harm: float


@dataclass(frozen=True)
class Way:
    """From the original to all that could be replaced.

    Attributes:
        points: the first is the original.
        chosen: which of them keeps within the limits with the most replaced, or, of costs, with the least.
        alone: the harm of each unit and config by itself.
    """

    points: tuple[Point, ...]
    chosen: int
    alone: dict[Unit, dict[MixerConfig, float]]


def choose(
    options: Mapping[Unit, Mapping[MixerConfig, float]],
    exact: Mapping[Unit, float],
    harm: Harm,
    limits: Limits,
    rounds: int,
    watch: Callable[[str], None],
) -> Way:
    """Replace one unit after the other, those first that harm least for what they save.

    Harms add up to more than their sum, so that those of the units that are left are measured again, beside all that
    is replaced by then, in so many rounds. Behind the limit the way goes on by the harms that were measured last.

    Args:
        options: what each unit may become, and what that costs.
        exact: what each unit costs as it is.
        harm: measures a choice.
        limits: when to stop.
        rounds: how often harms are measured anew, at least once.
        watch: told before each measurement what it is.
    """
    whole = sum(exact.values())
    useful = {
        unit: {config: cost for config, cost in costs.items() if cost < exact[unit]} for unit, costs in options.items()
    }
    left = [unit for unit, costs in useful.items() if costs]
    chunk = max(1, math.ceil(len(left) / max(1, rounds)))
    current: Choice = {}
    points = [Point({}, whole, 0.0)]
    alone: dict[Unit, dict[MixerConfig, float]] = {}
    measured: dict[Unit, tuple[MixerConfig, float]] = {}
    while left:
        if not _over(points[-1], limits) or not measured:
            found: dict[Unit, dict[MixerConfig, float]] = {}
            for unit in left:
                watch(f"{unit.site} alone" if len(unit.heads) != 1 else f"head {unit.heads[0]} of {unit.site} alone")
                found[unit] = {config: harm({**current, unit: config}) for config in useful[unit]}
            alone = alone or found
            base = points[-1].harm
            measured = {unit: _best(found[unit], useful[unit], exact[unit], base) for unit in left}
        left.sort(key=lambda unit: measured[unit][1])
        for step in _steps(left[:chunk]):
            for one in step:
                current[one] = measured[one][0]
            cost = whole - sum(exact[one] - options[one][config] for one, config in current.items())
            watch(f"{len(current)} replaced")
            points.append(Point(dict(current), cost, harm(current)))
        left = left[chunk:]
    return Way(tuple(points), _chosen(points, limits), alone)


def _steps(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    """Units in at most four steps, so that the way has points between two rounds."""
    size = max(1, math.ceil(len(units) / 4))
    return [units[start : start + size] for start in range(0, len(units), size)]


def _best(
    harms: Mapping[MixerConfig, float], costs: Mapping[MixerConfig, float], exact: float, base: float
) -> tuple[MixerConfig, float]:
    """The config with the least harm for what it saves, and that ratio."""
    ratios = {config: (harms[config] - base) / (exact - costs[config]) for config in costs}
    config = min(ratios, key=ratios.__getitem__)
    return config, ratios[config]


def _over(point: Point, limits: Limits) -> bool:
    if limits.cost is not None:
        return point.cost <= limits.cost
    return limits.harm is not None and point.harm > limits.harm


def _chosen(points: Sequence[Point], limits: Limits) -> int:
    if limits.cost is not None:
        reached = [index for index, point in enumerate(points) if point.cost <= limits.cost]
        return min(reached, key=lambda index: points[index].harm) if reached else len(points) - 1
    assert limits.harm is not None
    return max(index for index, point in enumerate(points) if point.harm <= limits.harm)
