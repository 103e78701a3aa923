"""Pass: run every site beside the subgraph that it was read from; one that differs goes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from remixer.mixers.masks import allowed_keys
from remixer.passes.base import Pass
from remixer.passes.mask_trials import random_parameters
from remixer.passes.sites import Site, lengths_of, named_nodes, sites_of
from remixer.passes.trial_sizes import NotTriedError, longest_window, padding_pattern, sizes_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss
from remixer.rewrite.slices import Slicer, evaluate, one_thread, widened
from remixer.rewrite.tolerance import error_and_limit

aten = torch.ops.aten
Sizes = Mapping[sympy.Symbol, int]

# (batch, length, factor on the queries, kind of padding): large scores make a softcap or a wrong scale show.
# They go without padding: what a row gives that sees nothing may depend on how its scores are rounded away.
TRIALS = ((2, 13, 1.0, 2), (3, 37, 8.0, 0), (2, 29, 1.0, 3), (2, 11, 1.0, 5))
LONGEST_PROOF = 1024  # windows up to this are tried on a sequence longer than they are


@dataclass(frozen=True)
class Difference:
    """The largest error of a proof, what is allowed, and the sizes at which it was met."""

    error: float
    limit: float
    place: str


@dataclass(frozen=True)
class ProveSites(Pass):
    """Compare the canonical operator with the matched subgraph on random inputs.

    Several sizes and paddings are tried. A site that agrees within the tolerance of its dtype keeps its
    record of the error; one that doesn't is put back to what it was, and is a Miss.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        slicer, nodes = Slicer(editor.program), named_nodes(editor.graph)
        with one_thread():
            found = [(site, _prove(slicer, nodes, site)) for site in sites_of(editor.program)]
        for site, proof in found:  # all after the last run, since edits change the graph under the slicer
            if isinstance(proof, str):
                revert(editor, site, nodes)
                editor.miss(Miss(proof, site.node, site.record.rule, site.name))
            else:
                site.node.meta["site"] = replace(site.record, error=proof.error)


def revert(editor: Editor, site: Site, nodes: Mapping[str, fx.Node]) -> None:
    """Give a site's readers back the subgraph that it was read from; what it needed is left to the sweep."""
    editor.replace(nodes[site.record.result], nodes[site.record.original])
    del site.node.meta["site"]


def trials(slicer: Slicer, nodes: Mapping[str, fx.Node], site: Site) -> list[tuple[int, int, float, int]]:
    """The trials of a site: the usual ones, and one longer than any window that its mask may have."""
    masks = [] if site.record.note else [nodes[name] for name in site.record.masks]
    longest = max((longest_window(slicer, mask) for mask in masks), default=0)
    if not 20 < longest <= LONGEST_PROOF:
        return list(TRIALS)
    return [*TRIALS, (1, _runnable(slicer, nodes, site, longest + 16), 1.0, 0)]


def _runnable(slicer: Slicer, nodes: Mapping[str, fx.Node], site: Site, tokens: int) -> int:
    """So many tokens, or as many as the original can take: a table of its mask may end before."""

    def runs(length: int) -> bool:
        sizes = sizes_of(slicer.program, 1, length, lengths_of(site))
        try:
            slicer.run(nodes[site.record.original], _feeds(site, nodes, sizes, 1.0, 0), sizes, widen=True)
        except (RuntimeError, IndexError):
            return False
        except KeyError:
            pass  # its proof says so
        return True

    if runs(tokens):
        return tokens
    shortest, longest = TRIALS[0][1], tokens
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        shortest, longest = (middle, longest) if runs(middle) else (shortest, middle)
    return shortest


def difference(
    slicer: Slicer,
    nodes: Mapping[str, fx.Node],
    site: Site,
    batch: int,
    length: int,
    factor: float,
    padding: int,
) -> Difference:
    """How far a site is from its original on one random input.

    Raises:
        KeyError: they depend on something else than the operands.
        ValueError: the two have different shapes.
    """
    sizes = sizes_of(slicer.program, batch, length, lengths_of(site))
    feeds = _feeds(site, nodes, sizes, factor, padding)
    # In float32 at least: half precision would hide a small mistake, and two right forms differ by its rounding.
    # Tables of biases are random: at zero, as many of them start, any reading of them would be right.
    masks = [] if site.record.note else [nodes[name] for name in site.record.masks]
    tables = random_parameters(slicer.program, slicer, masks)
    actual = slicer.run(nodes[site.record.result], feeds, sizes, tables, widen=True)
    expected = slicer.run(nodes[site.record.original], feeds, sizes, tables, widen=True)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ValueError(
            f"gives {tuple(actual.shape)} {actual.dtype} in place of {tuple(expected.shape)} {expected.dtype}"
        )
    # Softmax over nothing but -inf is NaN. Where a query sees no key, no number is the right one.
    undefined = expected.isnan().any(-1, keepdim=True)
    if undefined.any():
        live = _live_rows(slicer, site, feeds, sizes).expand(*_rows(site, sizes), 1)
        undefined &= ~live.reshape(undefined.shape)
    error, limit = error_and_limit(actual.masked_fill(undefined, 0.0), expected.masked_fill(undefined, 0.0))
    return Difference(error, limit, f"batch {batch}, length {length}")


def _prove(slicer: Slicer, nodes: Mapping[str, fx.Node], site: Site) -> Difference | str:
    """The largest difference, or the reason why the site is not proven."""
    worst = Difference(0.0, 0.0, "")
    for trial in trials(slicer, nodes, site):
        try:
            found = difference(slicer, nodes, site, *trial)
        except (KeyError, RuntimeError, IndexError, TypeError, ValueError, NotTriedError) as error:
            told = str(error.args[0]) if error.args else type(error).__name__
            return f"can't be run alone: {told.splitlines()[0]}"
        if not found.error <= found.limit:
            return f"differs from what it was read from by {found.error:.3g} at {found.place}"
        worst = max(worst, found, key=lambda one: one.error)
    return worst


def _feeds(site: Site, nodes: Mapping[str, fx.Node], sizes: Sizes, factor: float, padding: int) -> dict[fx.Node, Any]:
    """Random operands; the mask's too where its meaning is not known."""
    feeds: dict[fx.Node, Any] = {}
    for index, (name, cut) in enumerate(site.record.cuts.items()):
        node = nodes[cut]
        if name == "padding":
            feeds[node] = _padding(site, node, sizes, padding)
        elif node not in feeds:
            feeds[node] = _random(node, sizes, index)
        if name == "query":
            feeds[node] = feeds[node] * factor
    for index, name in enumerate(site.record.masks if site.record.note else ()):
        feeds[nodes[name]] = _random_mask(nodes[name], sizes, index)
    return feeds


def _shape(node: fx.Node, sizes: Sizes) -> list[int]:
    return [evaluate(size, sizes) for size in node.meta["val"].shape]


def _random(node: fx.Node, sizes: Sizes, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_shape(node, sizes), generator=generator).to(widened(node.meta["val"].dtype))


def _random_mask(node: fx.Node, sizes: Sizes, seed: int) -> Tensor:
    """Numbers to add, or booleans of which both kinds are met in every row of some length."""
    numbers, dtype = _random(node, sizes, 100 + seed), widened(node.meta["val"].dtype)
    if dtype.is_floating_point:
        return numbers
    chosen = numbers > -0.5
    if chosen.dim():
        chosen[..., 0], chosen[..., -1] = True, False
    return chosen.to(dtype)


def _padding(site: Site, node: fx.Node, sizes: Sizes, kind: int) -> Tensor:
    operand = site.operand("padding")
    existing = padding_pattern(kind, *_shape(node, sizes))
    inverted = operand is not None and operand is not node and operand.target is aten.logical_not.default
    return (~existing if inverted else existing).to(node.meta["val"].dtype)


def _rows(site: Site, sizes: Sizes) -> list[int]:
    """B, H, T of a site."""
    return _shape(site.node, sizes)[:3]


def _live_rows(slicer: Slicer, site: Site, feeds: dict[fx.Node, Any], sizes: Sizes) -> Tensor:
    """(B or 1, 1, T or 1, 1) bool: queries that see some key."""
    T, S = (evaluate(size, sizes) for size in lengths_of(site))
    padding = site.operand("padding")
    existing = slicer.run(padding, feeds, sizes) if padding is not None else None
    allowed = allowed_keys(site.spec, T, S, existing, torch.device("cpu"))
    if allowed is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool)
    while allowed.dim() < 4:
        allowed = allowed[None]
    return allowed.any(-1, keepdim=True)
