"""What happened to a model: per site, per pass, and as a whole."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from remixer.mixers import AttentionSpec, MixerConfig

Status = Literal["understood", "replaced", "kept", "missed"]


@dataclass(frozen=True)
class SiteReport:
    """One attention.

    Attributes:
        name: module path.
        rule: the rule that recognised it, or that came nearest.
        source: "file.py:line".
        kind: class name of its module.
        spec: what it computes, or None if that was not understood.
        mixer: name of what stands there now: a mixer, or "softmax" where the original was kept.
        config: options of the mixer, or None where the original was kept.
        status: "understood" (nothing was asked), "replaced", "kept" or "missed" (not understood, hence kept).
        reason: why it was kept or missed, or why its mask was not understood.
        error: largest error of the proof that the spec is right, on random inputs; None without a proof.
        parameters: how many stand under its module path, before and after.
    """

    name: str
    rule: str
    source: str
    kind: str
    spec: AttentionSpec | None
    mixer: str
    config: MixerConfig | None
    status: Status
    reason: str
    error: float | None
    parameters: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if self.spec is not None:
            spec = dataclasses.asdict(self.spec)
            plain["spec"] = {**spec, "dtype": str(self.spec.dtype), "words": str(self.spec)}
        if self.config is not None:
            plain["config"] = self.config.to_dict()
        return plain


@dataclass(frozen=True)
class PassReport:
    """One step: its name, what it took, how many nodes there were, how many rules were applied."""

    name: str
    seconds: float
    nodes: tuple[int, int]
    rewrites: int


@dataclass(frozen=True)
class Report:
    """What happened to a model.

    Attributes:
        model: class name.
        sites: one record per attention.
        passes: one record per step, the capture first.
        order: how the whole grows with the length: "n", "n log n", "n^2".
        blamed: nodes that grow that fast, with their shapes, where that is faster than n log n.
        static: dimensions of inputs that stayed fixed, and why.
        notes: what else there is to know about the capture.
        versions: of remixer and torch.
        extended: what was made longer so that longer inputs are taken, and how.
    """

    model: str
    sites: tuple[SiteReport, ...]
    passes: tuple[PassReport, ...]
    order: str
    blamed: tuple[str, ...]
    static: tuple[str, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    extended: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all steps together."""
        return sum(step.seconds for step in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain["sites"] = [site.to_dict() for site in self.sites]
        plain["passes"] = [dataclasses.asdict(step) for step in self.passes]
        return plain

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=150, color_system=None, force_terminal=False)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        """The report for a terminal."""
        return Group(_headline(self), _site_table(self.sites), _pass_table(self), *_remarks(self))


def _headline(report: Report) -> Text:
    counts = {status: sum(site.status == status for site in report.sites) for status in Status.__args__}  # type: ignore[attr-defined]
    said = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    many = len(report.sites)
    found = f"{many} attention{'s' * (many != 1)}" + (f": {said}" if said else "")
    return Text(f"{report.model}: {found}; grows as {report.order}")


def _site_table(sites: Iterable[SiteReport]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("site", "what it computes", "mixer", "status", "parameters", "proof"):
        table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
    for many, site in _runs(sites):
        before, after = site.parameters
        count = f"{before:,}" if before == after else f"{before:,} -> {after:,}"
        table.add_row(
            site.name + (f" (and {many - 1} alike)" if many > 1 else ""),
            str(site.spec) if site.spec else _unread(site),
            _config(site),
            site.status + (f": {site.reason}" if site.reason else ""),
            count,
            f"{site.error:.1e}" if site.error is not None else "-",
        )
    return table


def _unread(site: SiteReport) -> str:
    nearest = site.kind or site.rule
    return f"not understood; nearest is {nearest}" if nearest else "not understood"


def _runs(sites: Iterable[SiteReport]) -> list[tuple[int, SiteReport]]:
    """Neighbours that differ in name and proof only, counted together."""
    runs: list[tuple[int, SiteReport]] = []
    for site in sites:
        if runs and _alike(runs[-1][1], site):
            many, first = runs[-1]
            worst = max((first.error or 0.0), (site.error or 0.0)) if first.error is not None else None
            runs[-1] = (many + 1, dataclasses.replace(first, error=worst))
        else:
            runs.append((1, site))
    return runs


def _alike(one: SiteReport, other: SiteReport) -> bool:
    blank = {"name": "", "source": "", "error": None}
    return dataclasses.replace(one, **blank) == dataclasses.replace(other, **blank)  # type: ignore[arg-type]


def _config(site: SiteReport) -> str:
    if site.config is None:
        return "as it was" if site.status in ("kept", "missed") else "-"
    defaults = type(site.config)()
    changed = [
        f"{item.name}={getattr(site.config, item.name)}"
        for item in dataclasses.fields(site.config)
        if getattr(site.config, item.name) != getattr(defaults, item.name)
    ]
    return f"{site.mixer}({', '.join(changed)})"


def _pass_table(report: Report) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for name in ("step", "seconds", "nodes before", "nodes after", "rewrites"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for step in report.passes:
        before, after = step.nodes
        table.add_row(step.name, f"{step.seconds:.2f}", f"{before:,}", f"{after:,}", f"{step.rewrites:,}")
    table.add_row("all", f"{report.seconds:.2f}", "", "", "")
    return table


def _remarks(report: Report) -> list[Text]:
    lines = [f"{report.order} because of {node}" for node in report.blamed[:4]]
    if len(report.blamed) > 4:
        lines.append(f"... and {len(report.blamed) - 4} more")
    return [Text(line) for line in [*lines, *report.static, *report.notes, *_extended(report)]]


def _extended(report: Report) -> list[str]:
    return [f"extended: {line}" for line in report.extended]
