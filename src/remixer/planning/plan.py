"""A plan: which attention is to become what, and what that was measured to cost and to harm."""

from __future__ import annotations

import difflib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from remixer.distillation.losses import MEANINGS
from remixer.export.files import whole
from remixer.export.typed import TypedError, parsed, read_text, typed
from remixer.mixers import MixerConfig
from remixer.mixers.errors import MixerConfigError, UnknownMixerError
from remixer.passes.select import Selection
from remixer.passes.split_heads import Groups, part_name
from remixer.planning.errors import PlanError

FORMAT = 1


@dataclass(frozen=True)
class SitePlan:
    """What one attention is to become.

    Attributes:
        name: of the site.
        groups: its key/value heads, those that share a mixer together.
        configs: for each group its mixer's config, None where the attention stays.
        harms: what each candidate does to the outputs if it alone is replaced, by the candidate's words.
    """

    name: str
    groups: Groups
    configs: tuple[MixerConfig | None, ...]
    harms: Mapping[str, float] = field(default_factory=dict)

    @property
    def entries(self) -> dict[str, MixerConfig | None]:
        """The names that `SplitHeads` gives the groups, with their configs."""
        if len(self.groups) == 1:
            return {self.name: self.configs[0]}
        return {part_name(self.name, group): config for group, config in zip(self.groups, self.configs, strict=True)}


@dataclass(frozen=True)
class FrontPoint:
    """One step of the way from the original to all that could be replaced.

    Attributes:
        share: of the attentions' cost that is left.
        harm: what it does to the outputs.
        replaced: how many units, attentions or groups of heads, are replaced.
        chosen: whether the plan stops here.
    """

    share: float
    harm: float
    replaced: int
    chosen: bool = False


@dataclass(frozen=True)
class Plan:
    """Which attention is to become what: give it to `remix` in the place of a mixer.

    Attributes:
        sites: all attentions of the model that were understood.
        front: the way there, and beyond.
        length: tokens of the sequences that costs are for.
        cost: what was counted, "flops" or "seconds".
        loss: what harm is measured in.
    """

    sites: tuple[SitePlan, ...]
    front: tuple[FrontPoint, ...]
    length: int
    cost: str
    loss: str

    @property
    def selection(self) -> Selection:
        """What `Substitute` takes."""
        return Selection.of({name: config for site in self.sites for name, config in site.entries.items()})

    @property
    def splits(self) -> dict[str, Groups]:
        """What `SplitHeads` takes."""
        return {site.name: site.groups for site in self.sites if len(site.groups) > 1}

    @property
    def chosen(self) -> FrontPoint:
        """Where on the front it is."""
        return next(point for point in self.front if point.chosen)

    @property
    def meaning(self) -> str:
        """What harm is measured in, in words."""
        return MEANINGS.get(self.loss, self.loss)

    def to_json(self) -> str:
        """As JSON, one site a line, so that two plans can be compared with any diff."""
        rows = [
            json.dumps(
                {
                    "name": site.name,
                    "groups": [list(group) for group in site.groups],
                    "configs": [None if config is None else config.to_dict() for config in site.configs],
                    "harms": dict(site.harms),
                }
            )
            for site in self.sites
        ]
        points = [json.dumps(vars(point)) for point in self.front]
        head = {"format": FORMAT, "length": self.length, "cost": self.cost, "loss": self.loss}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        inner = ",\n    ".join(rows), ",\n    ".join(points)
        lines += [f'"sites": [\n    {inner[0]}\n  ]', f'"front": [\n    {inner[1]}\n  ]']
        return "{\n  " + ",\n  ".join(lines) + "\n}\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; the file is whole or not there."""
        with whole(Path(path)) as draft:
            draft.write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """What `save` wrote.

        Raises:
            PlanError: it can't be read, is no plan, or asks for mixers that there aren't.
        """
        try:
            return Plan.from_json(read_text(Path(path)))
        except (OSError, TypedError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from error
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    @staticmethod
    def from_json(text: str) -> Plan:
        """What `to_json` gave.

        Raises:
            PlanError: it is no plan, or asks for mixers that there aren't.
        """
        try:
            found = parsed(text)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                told = found.get("format") if isinstance(found, dict) else None
                raise PlanError(f"a plan of format {told!r:.40}, this remixer reads {FORMAT}")
            plan = typed(Plan, {name: value for name, value in found.items() if name != "format"})
        except (TypedError, UnknownMixerError, MixerConfigError) as error:
            raise PlanError(f"this is no plan: {error}") from error
        if any(len(site.groups) != len(site.configs) for site in plan.sites):
            raise PlanError("a site has another number of configs than of groups")
        if sum(point.chosen for point in plan.front) != 1:
            raise PlanError("this is no plan: one point of its front has to be the chosen one")
        return plan

    def diff(self, other: Plan) -> str:
        """What is different in another plan, line by line; "" if nothing is."""
        lines = difflib.unified_diff(self.to_json().splitlines(), other.to_json().splitlines(), lineterm="", n=0)
        return "\n".join(lines)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=150, color_system=None, force_terminal=False)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        table = Table(title=f"attentions at {self.length:,} tokens, harm in {self.meaning}", show_edge=False)
        table.add_column("attention")
        table.add_column("becomes")
        table.add_column("harm if replaced alone")
        for site in self.sites:
            harms = ", ".join(f"{name} {harm:.4f}" for name, harm in site.harms.items())
            for index, (name, config) in enumerate(site.entries.items()):
                table.add_row(name, "as it is" if config is None else words(config), "" if index else harms)
        front = Table(title=f"the way there: share of the attentions' {self.cost} that is left", show_edge=False)
        for name in ("replaced", "share left", "harm", ""):
            front.add_column(name, justify="right")
        for point in self.front:
            mark = "<- this plan" if point.chosen else ""
            front.add_row(str(point.replaced), f"{point.share:.3f}", f"{point.harm:.4f}", mark)
        return Group(table, front)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the front, harm over the share that is left, to a file."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        axis.plot([point.share for point in self.front], [point.harm for point in self.front], marker="o")
        axis.plot([self.chosen.share], [self.chosen.harm], marker="*", markersize=16, linestyle="", label="this plan")
        axis.set(xlabel=f"share of the attentions' {self.cost} at {self.length:,} tokens", ylabel=self.meaning)
        axis.grid(alpha=0.3)
        axis.legend()
        figure.savefig(path, dpi=120)
        plt.close(figure)


def words(config: MixerConfig) -> str:
    """A config in short: its mixer, and the options that are not the usual ones.

    Examples:
        >>> from remixer import LongShort
        >>> words(LongShort(window=64))
        'long_short(window=64)'
    """
    usual, options = type(config)().to_dict(), config.to_dict()
    changed = [f"{name}={value!r}" for name, value in options.items() if usual[name] != value]
    return f"{config.name}({', '.join(changed)})"
