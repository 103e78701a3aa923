"""Of the attentions of a program whose tokens are spread: how many tokens, which layout, and what mixes the parts."""

from __future__ import annotations

import sympy
from torch import nn

from remixer.mixers import DistributedMixer, LongShortMixer, Softmax
from remixer.mixers.distributed.by_heads import of_some_heads
from remixer.mixers.distributed.cost import Scheme, layout_of
from remixer.mixers.distributed.layout import Layout
from remixer.mixers.distributed.long_short import refusal_of_halo
from remixer.passes.errors import ShardError
from remixer.passes.sites import Site, sites_of
from remixer.passes.spread_tokens import HeadsMixer, OwnMixer, SpreadAttention, WholeMixer
from remixer.rewrite.program import Program, expression


def lengths_in(program: Program) -> tuple[sympy.Expr, ...]:
    """How many tokens there are, as the attentions have it: one number, or of an encoder and a decoder two.

    Raises:
        ShardError: there is no attention, a number is fixed, or there are more than two.
    """
    sites = sites_of(program)
    if not sites:
        raise ShardError("cannot shard the sequence: no attention was replaced. Give remix 'distributed'")
    found: dict[sympy.Expr, str] = {}
    for site in sites:
        for length in lengths_of(site):
            found.setdefault(length, site.name)
    told = ", ".join(f"{length} at {name}" for length, name in found.items())
    advice = "What to do: partition with strategy='replicated', which needs none"
    if not all(length.free_symbols for length in found):
        raise ShardError(f"cannot shard the sequence: the attentions have a length that is not free: {told}. {advice}")
    if len(found) > 2:
        raise ShardError(
            f"cannot shard the sequence: there may be one length, or one of queries and one of keys, but the "
            f"attentions have {told}. {advice}"
        )
    return tuple(found)


def layout_for(program: Program, scheme: Scheme) -> Layout:
    """Which tokens each process has: one choice for the whole program."""
    sites = sites_of(program)
    if any(refusal_of_halo(site.mixer) is None for site in sites):
        return "contiguous"  # of zigzag's pieces, hardly any neighbours are in one process
    layouts = {layout_of(scheme, site.spec) for site in sites}
    return layouts.pop() if len(layouts) == 1 else "contiguous"


def lengths_of(site: Site) -> tuple[sympy.Expr, sympy.Expr]:
    """T and S; some mixers of one sequence read its values alone."""
    value = site.operand("value")
    assert value is not None
    query = site.operand("query") or value
    return expression(query.meta["val"].shape[2]), expression(value.meta["val"].shape[2])


def spread_mixer(
    site: Site, scheme: Scheme, layout: Layout, mesh_dim: str, ranks: int, *, by_row: bool
) -> tuple[nn.Module, str]:
    """What stands in the place of a site.

    Args:
        site: of the whole sequence.
        scheme: of exact attention.
        layout: which tokens each process has.
        mesh_dim: names the processes.
        ranks: how many there will be, 0 if that isn't known.
        by_row: whether a dense bias has a row for each query.

    Returns:
        The module, and "" or why it runs on the whole sequence on every process.
    """
    mixer = site.mixer
    if isinstance(mixer, (DistributedMixer, Softmax)):
        return SpreadAttention(mixer.spec, scheme, layout, mesh_dim, by_row=by_row), ""
    refused = refusal_of_halo(mixer)
    if refused is None:
        assert isinstance(mixer, LongShortMixer)
        return OwnMixer(mixer, mesh_dim), ""
    some = of_some_heads(mixer, ranks) if ranks > 1 else None
    if some is not None:
        return HeadsMixer(mixer, some, ranks, layout, mesh_dim), ""
    told = f"{mixer.config.name!r} runs on the whole sequence, on every process: {refused}"
    return WholeMixer(mixer, layout, mesh_dim, by_row=by_row), told
