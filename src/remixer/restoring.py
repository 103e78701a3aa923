"""`restore`: the original attention back at some sites, so that what each costs can be measured beside it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from remixer.errors import NoOriginalError
from remixer.passes.base import Pipeline
from remixer.passes.operands import projections
from remixer.passes.original import Original
from remixer.passes.prove_growth import growth
from remixer.passes.put_mixers import PutMixers
from remixer.passes.select import Selection, matches
from remixer.passes.sites import sites_of
from remixer.passes.sweep import Sweep
from remixer.remixed import Remixed, own_weights
from remixer.report import PassReport, Report
from remixer.reporting import blamed
from remixer.rewrite.modules import keep_persistence, weights
from remixer.rewrite.program import Program


def restore(remixed: nn.Module, sites: str | Iterable[str] | None = None) -> Remixed:
    """A copy of a rewritten model in which the original attention is back at some sites.

    There, it computes what the original model does, with the original's projections: transfer and training may have
    changed those of the rewritten one. Everything else has the weights that the rewritten model has now, and all other
    sites keep their mixers, so that the difference of the two is what the mixers at these sites do.

    Args:
        remixed: what `remix` gave, or `load` of an artifact that was saved with its original. It stays as it is.
        sites: patterns of the names of sites, as `remix` takes them; None for all.

    Returns:
        The copy, in the mode of the rewritten model; its report says which sites were restored.

    Raises:
        NoOriginalError: the model doesn't know the one it was made from.
        SelectionError: a pattern selects no site that has a mixer.

    Examples:
        >>> import remixer
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        >>> small = remixer.remix(layer, "toeplitz", torch.zeros(2, 8, 32))
        >>> x = torch.randn(1, 20, 32)
        >>> bool(torch.allclose(restore(small)(x), layer(x), atol=1e-5)), bool(torch.allclose(small(x), layer(x)))
        (True, False)
    """
    start = time.perf_counter()
    if not isinstance(remixed, Remixed):
        raise NoOriginalError(f"restore takes what remixer.remix gave, got {type(remixed).__name__}")
    original: Original | None = remixed.meta.get("original")
    if original is None:
        raise NoOriginalError(
            "this model no longer knows the one it was made from: it was pickled, or saved without it. Save it with "
            "original=True"
        )
    now = {site.name: site for site in sites_of(Program.of(remixed))}
    wanted = _chosen(sites, list(now))
    kept = {
        name: (str(site.node.target), copy.deepcopy(site.mixer)) for name, site in now.items() if name not in wanted
    }
    longer = () if original.extend is None else (original.extend,)
    result = Pipeline((PutMixers(kept), Sweep(), *longer))(original.swept)
    module = result.program.graph_module
    restored = Remixed(module, module.graph)
    restored.meta = {"original": original, "transfers": remixed.transfers}
    keep_persistence(module, restored)
    own_weights(restored)
    program = result.program.with_graph_module(restored)
    _take_weights(restored, remixed, _of_restored(program, wanted))
    nodes = (len(original.swept.graph.nodes), len(restored.graph.nodes))
    step = PassReport("restore", time.perf_counter() - start, nodes, len(result.rewrites))
    restored.meta["report"] = _report(remixed.report, program, wanted, step)
    return restored.train(remixed.training)


def _chosen(sites: str | Iterable[str] | None, names: list[str]) -> set[str]:
    patterns = ("*",) if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
    Selection(tuple((pattern, None) for pattern in patterns)).check(names)
    return {name for name in names if any(matches(pattern, name) for pattern in patterns)}


def _of_restored(program: Program, wanted: set[str]) -> set[str]:
    """The weights of projections that only restored sites read."""
    own: set[str] = set()
    others: set[str] = set()
    for site in sites_of(program):
        (own if site.name in wanted else others).update(projections(site, program.graph_module))
    weighed = own - others
    return weighed | {f"{name.removesuffix('weight')}bias" for name in weighed if name.endswith("weight")}


def _take_weights(restored: Remixed, remixed: Remixed, except_for: set[str]) -> None:
    """Let a model have the weights of another, but for some, which only get its device and precision."""
    theirs, made = weights(remixed), weights(restored)
    device = next((tensor.device for tensor in theirs.values()), torch.device("cpu"))
    common = [name for name, tensor in theirs.items() if isinstance(tensor, nn.Parameter) and name in made]
    lowered = {made[name].dtype: theirs[name].dtype for name in common}
    restored.to(device)
    taken: dict[int, Tensor] = {}
    for name, old in weights(restored).items():
        owner, _, own = name.rpartition(".")
        given = theirs.get(name) if name not in except_for else None
        source = old if given is None else given
        if id(source) not in taken:
            tensor = source.detach().clone() if given is not None else source.detach()
            if given is None and isinstance(old, nn.Parameter):
                tensor = tensor.to(lowered.get(old.dtype, old.dtype))
            grad = theirs[name].requires_grad if name in theirs else old.requires_grad
            taken[id(source)] = nn.Parameter(tensor, grad) if isinstance(old, nn.Parameter) else tensor
        setattr(restored.get_submodule(owner), own, taken[id(source)])


def _report(before: Report, program: Program, wanted: set[str], step: PassReport) -> Report:
    """The report of the rewritten model, with what is the original's again."""
    grown = growth(program)
    sites = tuple(
        replace(
            site,
            mixer="softmax",
            config=None,
            status="kept",
            reason="restored",
            parameters=(site.parameters[0], site.parameters[0]),
        )
        if site.name in wanted
        else site
        for site in before.sites
    )
    return replace(before, sites=sites, passes=(*before.passes, step), order=str(grown.order), blamed=blamed(grown))
