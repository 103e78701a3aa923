"""Collecting what the passes say into a report."""

from __future__ import annotations

import torch
from torch import nn

from remixer.mixers import Softmax
from remixer.passes.base import Result
from remixer.passes.prove_growth import growth
from remixer.passes.sites import SiteRecord, sites_of
from remixer.report import PassReport, Report, SiteReport, Status
from remixer.rewrite.growth import Growth, Order
from remixer.rewrite.match import Miss, source_line
from remixer.rewrite.program import Program
from remixer.rewrite.sizes import in_letters, letters_of
from remixer.viewing.trace import Trace


class Steps:
    """The steps of one rewrite as they are done, and what is known of its sites.

    Args:
        model: class name of the model.
        program: as captured.
        seconds: what the capture took.
        trace: is told of the graph after every pass.
    """

    def __init__(self, model: str, program: Program, seconds: float, trace: Trace | None = None) -> None:
        self.model = model
        self.trace = trace
        if trace is not None:
            trace.start(program, seconds=seconds)
        self.program = program
        self.captured = program
        count = len(program.graph.nodes)
        self.timings = [PassReport("capture", seconds, (count, count), 0)]
        self.sites: dict[str, tuple[SiteRecord, Softmax]] = {}
        self.misses: list[Miss] = []

    def split(self, result: Result) -> None:
        """Take over attentions that were split: their parts are the sites then."""
        self.program = result.program
        found = {site.name: site for site in sites_of(result.program)}
        self.sites = {name: each for name, each in self.sites.items() if name in found}
        for name, site in found.items():
            if name not in self.sites and isinstance(site.mixer, Softmax):
                self.sites[name] = (site.record, site.mixer)
        order = list(found)
        self.sites = {name: self.sites[name] for name in order}
        nodes, steps = result.nodes, len(result.rewrites)
        if steps:
            self._trace(result)
            self.timings.append(PassReport("SplitHeads", result.seconds, nodes, steps))

    def add(self, result: Result) -> None:
        """Take over what a pipeline did."""
        self._trace(result)
        for step in result.steps:
            name = step.name.split("(")[0]
            self.timings.append(PassReport(name, step.seconds, step.nodes, len(step.rewrites)))
        self.misses += result.misses
        self.program = result.program
        for site in sites_of(result.program):
            if isinstance(site.mixer, Softmax) and site.name not in self.sites:
                self.sites[site.name] = (site.record, site.mixer)

    def _trace(self, result: Result) -> None:
        if self.trace is not None:
            self.trace.add(result)


def missed_sites(steps: Steps) -> dict[str, Miss]:
    """Attentions that were not understood: their names, and the first that was said of each."""
    missed: dict[str, Miss] = {}
    for miss in steps.misses:
        name = miss.place or "attention"
        if miss.rule not in ("ClassifyMasks", "Substitute") and name not in steps.sites:
            missed.setdefault(name, miss)
    return missed


def report_of(steps: Steps, status: Status) -> Report:
    """The report of what was done so far; `status` is that of understood sites that were not replaced."""
    # Before anything is replaced, each site's canonical form still stands beside what it was read from.
    grown = growth(steps.captured if status == "understood" else steps.program)
    letters = letters_of(steps.captured)
    now = {site.name: site for site in sites_of(steps.program)}
    before, after = steps.captured.graph_module, steps.program.graph_module
    refused = {miss.site: miss.reason for miss in steps.misses if miss.rule == "Substitute"}
    sites = []
    for name, (record, softmax) in steps.sites.items():
        site = now.get(name)
        replaced = site is not None and status != "understood"
        sites.append(
            SiteReport(
                name,
                record.rule,
                record.source,
                record.kind,
                softmax.spec,
                site.mixer.config.name if replaced and site else "softmax",
                site.mixer.config if replaced and site else None,
                "replaced" if replaced else status,
                in_letters(refused.get(name, record.note), letters),
                record.error,
                (_count(before, name), _count(after, name)),
            )
        )
    for name, miss in missed_sites(steps).items():
        source = source_line(miss.node) if miss.node is not None else ""
        counts = (_count(before, name), _count(after, name))
        reason = in_letters(str(miss), letters)
        sites.append(SiteReport(name, miss.rule, source, "", None, "softmax", None, "missed", reason, None, counts))
    return Report(
        steps.model,
        tuple(sites),
        tuple(steps.timings),
        str(grown.order),
        blamed(grown),
        tuple(map(str, steps.captured.static)),
        steps.captured.notes,
        {"torch": torch.__version__},
        steps.program.extended,
    )


def _count(module: nn.Module, name: str) -> int:
    """Parameters under a site's module path; of the whole model if it has none."""
    path = name.split("[")[0]
    known = dict(module.named_modules())
    owner = known.get(path, module if path == "attention" else None)
    return sum(parameter.numel() for parameter in owner.parameters()) if owner is not None else 0


def blamed(grown: Growth) -> tuple[str, ...]:
    """Nodes that grow faster than n log n, as reports name them."""
    if grown.order <= Order(1.0, log=True):
        return ()
    return tuple(map(str, grown.to_blame()))
