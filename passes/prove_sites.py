"""Pass: run every site beside the subgraph that it was read from; one that differs goes back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from remixer.mixers.softmax import allowed_keys
from remixer.passes.base import Pass
from remixer.passes.mask_trials import padding_pattern, sizes_of
from remixer.passes.sites import Site, find_node, sites_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss
from remixer.rewrite.slices import Slicer, evaluate
from remixer.rewrite.tolerance import error_and_limit

# (batch, length, factor on the queries, kind of padding): large scores make a softcap or a wrong scale show.
TRIALS = ((2, 13, 1.0, 0), (3, 37, 8.0, 2), (2, 29, 1.0, 3))


@dataclass(frozen=True)
class Difference:
    """The largest error of a proof, what is allowed, and the sizes at which it was met."""

    error: float
    limit: float
    place: str


@dataclass(frozen=True)
class ProveSites(Pass):
    """Compare the canonical operator with the matched subgraph on random inputs, at several sizes and paddings.

    A site that agrees within the tolerance of its dtype keeps its record of the error; one that doesn't is put
    back to what it was, and is a Miss.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        slicer = Slicer(editor.program)
        for site in sites_of(editor.program):
            worst = Difference(0.0, 0.0, "")
            reason = ""
            try:
                for trial in TRIALS:
                    found = difference(slicer, site, *trial)
                    if not found.error <= found.limit:
                        reason = f"differs from what it was read from by {found.error:.3g} at {found.place}"
                        break
                    worst = max(worst, found, key=lambda one: one.error)
            except (KeyError, RuntimeError, IndexError) as error:
                reason = f"can't be run alone: {str(error).splitlines()[0]}"
            if reason:
                revert(editor, site)
                editor.miss(Miss(reason, site.node, site.record.rule, site.name))
            else:
                site.node.meta["site"] = replace(site.record, error=worst.error)


def revert(editor: Editor, site: Site) -> None:
    """Give a site's readers back the subgraph that it was read from; what it needed is left to the sweep."""
    graph = editor.graph
    editor.replace(find_node(graph, site.record.result), find_node(graph, site.record.original))
    del site.node.meta["site"]


def difference(slicer: Slicer, site: Site, batch: int, length: int, factor: float, padding: int) -> Difference:
    """How far a site is from its original on one random input."""
    sizes = sizes_of(slicer.program, batch, length)
    feeds: dict[fx.Node, Any] = {}
    for index, (name, cut) in enumerate(site.record.cuts.items()):
        node = find_node(slicer.program.graph, cut)
        feeds[node] = _padding(site, node, sizes, padding) if name == "padding" else _random(node, sizes, index)
        if name == "query":
            feeds[node] = feeds[node] * factor
    actual = slicer.run(site.node, feeds, sizes)
    expected = slicer.run(find_node(slicer.program.graph, site.record.original), feeds, sizes)
    expected = expected.reshape(actual.shape)
    # Softmax over nothing but -inf is NaN. Where a query sees no key, no number is the right one.
    undefined = expected.isnan().any(-1, keepdim=True) & ~_live_rows(slicer, site, feeds, sizes)
    error, limit = error_and_limit(actual.masked_fill(undefined, 0.0), expected.masked_fill(undefined, 0.0))
    return Difference(error, limit, f"batch {batch}, length {length}")


def _random(node: fx.Node, sizes: dict[Any, int], seed: int) -> Tensor:
    recorded = node.meta["val"]
    generator = torch.Generator().manual_seed(seed)
    shape = [evaluate(size, sizes) for size in recorded.shape]
    return torch.randn(shape, generator=generator).to(recorded.dtype)


def _padding(site: Site, node: fx.Node, sizes: dict[Any, int], kind: int) -> Tensor:
    recorded, operand = node.meta["val"], site.operand("padding")
    existing = padding_pattern(kind, *(evaluate(size, sizes) for size in recorded.shape))
    assert operand is not None
    inverted = operand.target is torch.ops.aten.logical_not.default and operand is not node
    return (~existing if inverted else existing).to(recorded.dtype)


def _live_rows(slicer: Slicer, site: Site, feeds: dict[fx.Node, Any], sizes: dict[Any, int]) -> Tensor:
    """(B or 1, 1, T or 1, 1) bool: queries that see some key."""
    query, key, padding = site.operand("query"), site.operand("key"), site.operand("padding")
    assert query is not None and key is not None
    T, S = (evaluate(node.meta["val"].shape[2], sizes) for node in (query, key))
    existing = slicer.run(padding, feeds, sizes) if padding is not None else None
    allowed = allowed_keys(site.spec, T, S, existing, torch.device("cpu"))
    if allowed is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool)
    while allowed.dim() < 4:
        allowed = allowed[None]
    return allowed.any(-1, keepdim=True)
