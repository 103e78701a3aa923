"""`plan`: which attentions can be replaced by what, at the least harm."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from rich.console import Console
from torch import nn
from torch.export import ExportedProgram

from remixer import mixers as known
from remixer.distillation.attention_stage import AttentionStage
from remixer.distillation.batches import AgainAndAgain, calls
from remixer.distillation.checkpoint import Checkpoint
from remixer.distillation.losses import Loss
from remixer.distillation.training import Rules
from remixer.distillation.transferring import STARTS, run_stage
from remixer.mixers import MixerConfig
from remixer.passes.original import Original
from remixer.passes.recognise_attention import RULES
from remixer.passes.sites import Site, sites_of
from remixer.planning.candidates import Candidates, Unit
from remixer.planning.choosing import Choice, Way, choose
from remixer.planning.errors import PlanError
from remixer.planning.plan import FrontPoint, Plan, SitePlan, words
from remixer.planning.wish import USUAL, Wish
from remixer.recognising import recognise
from remixer.rewrite.inputs import Inputs
from remixer.rewrite.modules import device_of
from remixer.rewrite.program import Program
from remixer.rewrite.rule import Rule


def plan(
    model: nn.Module | ExportedProgram,
    inputs: Inputs | None,
    data: Iterable[Inputs],
    *,
    mixers: Sequence[str | MixerConfig] = USUAL,
    budget: float | None = None,
    seconds: float | None = None,
    harm: float | None = None,
    length: int = 4096,
    by_heads: bool = False,
    transfer_steps: int = 0,
    loss: str | Loss = "auto",
    batches: int = 4,
    rounds: int = 3,
    seed: int = 0,
    progress: bool = True,
    rules: tuple[Rule, ...] = RULES,
) -> Plan:
    """Choose which attentions of a model become what: those first that harm its outputs least for what they save.

    Args:
        model: see `remix`.
        inputs: see `remix`.
        data: batches as `inputs`; harms are measured on the first few, transfer goes through all.
        mixers: names or configs to choose from.
        budget: the share of the attentions' operations, at `length`, that may be left; 0.5 if nothing else is given.
        seconds: or so many seconds of all attentions together for one sequence of that length, as measured here.
        harm: or as much as possible is replaced that does no more harm than this.
        length: tokens of the sequences that cost is counted for.
        by_heads: let the heads of an attention become different things.
        transfer_steps: steps of attention transfer that the candidates are given before they are measured.
        loss: what harm is measured in; see `transfer`.
        batches: how many batches harms are measured on.
        rounds: how often the harms of what is left are measured anew, beside what is replaced by then.
        seed: of the candidates' random start.
        progress: show on stderr what is being measured.
        rules: what recognises attention.

    Returns:
        The plan: print it, `plot` or `save` it, give it to `remix`.

    Raises:
        PlanError: the budget can't be kept, or an option has no meaning.
        TransferError: the data doesn't fit the model.
        CaptureError: see `remix`.

    Examples:
        >>> import remixer
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 3).eval()
        >>> data = [torch.randn(2, 40, 32) for _ in range(2)]
        >>> half = plan(encoder, data[0], data, mixers=["toeplitz"], budget=0.7, loss="states", progress=False)
        >>> half.chosen.replaced, remixer.remix(encoder, half, data[0]).report.order
        (1, 'n^2')
    """
    wish = Wish(
        mixers=mixers,
        budget=budget,
        seconds=seconds,
        harm=harm,
        length=length,
        by_heads=by_heads,
        transfer_steps=transfer_steps,
        loss=loss,
        batches=batches,
        rounds=rounds,
        progress=progress,
    )
    steps = recognise(model, inputs, rules)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return plan_for(Original(steps.program).program, data, wish)


def plan_for(original: Program, data: Iterable[Inputs], wish: Wish) -> Plan:
    """See `remixer.plan`; of a program whose attentions are sites already."""
    sites = sites_of(original)
    if not sites:
        raise PlanError("no attention in the model was understood: there is nothing to plan. remixer.explain tells why")
    device = device_of(original.graph_module)
    held = list(itertools.islice(calls(data, original, device), wish.batches))
    if not held:
        raise PlanError("the data holds no batch")
    tried = Candidates(original, sites, wish.configs)
    if not any(tried.mixers.values()):
        told = "; ".join(f"{words(config)}: {_why_not(sites, config)}" for config in wish.configs)
        raise PlanError(f"none of the mixers can take the place of any attention: {told}")
    costs = tried.costs(wish.length, wish.cost)
    _learn(tried, data, wish.transfer_steps, device)
    units = {unit: _fraction(unit, site) for site in sites for unit in _units(site, wish.by_heads)}
    exact = {unit: costs[unit.site][None] * part for unit, part in units.items()}
    options = {
        unit: {config: costs[unit.site][config] * part for config in tried.mixers[unit.site]}
        for unit, part in units.items()
    }
    limits = wish.limits(sum(exact.values()))
    with _watching(wish.progress) as watch:
        way = choose(options, exact, lambda choice: tried.harm(choice, held, wish.measure), limits, wish.rounds, watch)
    chosen = way.points[way.chosen]
    if limits.cost is not None and chosen.cost > limits.cost:
        least = chosen.cost / sum(exact.values())
        raise PlanError(
            f"with everything replaced that can be, {least:.3f} of the attentions' {wish.cost} is left, more than was "
            "asked for. Give a larger budget, or cheaper mixers"
        )
    return Plan(
        tuple(_site_plan(site, chosen.choice, way) for site in sites),
        _front(way, sum(exact.values())),
        wish.length,
        wish.cost,
        tried.loss_name(wish.loss, held),
    )


def _units(site: Site, by_heads: bool) -> list[Unit]:
    heads = tuple(range(site.spec.kv_heads))
    return [Unit(site.name, (head,)) for head in heads] if by_heads else [Unit(site.name, heads)]


def _fraction(unit: Unit, site: Site) -> float:
    return len(unit.heads) / site.spec.kv_heads


def _why_not(sites: Sequence[Site], config: MixerConfig) -> str:
    return str(known.mixer_of(config).supports(sites[0].spec, config))


def _learn(tried: Candidates, data: Iterable[Inputs], steps: int, device: torch.device) -> None:
    """A short transfer of all candidates at their sites, one config after the other."""
    if steps < 1:
        return
    for config in tried.configs:
        own = {name: fitting[config] for name, fitting in tried.mixers.items() if config in fitting}
        stage = AttentionStage(tried.original, own)
        if not stage.parameters:
            continue
        stage.start(calls(data, tried.original, device), STARTS)
        run_stage(stage, AgainAndAgain(data, tried.original, device), Rules(None, steps), Checkpoint(None, {}))


def _site_plan(site: Site, choice: Choice, way: Way) -> SitePlan:
    """Heads that become the same thing are one group."""
    groups: dict[MixerConfig | None, list[int]] = {}
    for head in range(site.spec.kv_heads):
        config = next(
            (config for unit, config in choice.items() if unit.site == site.name and head in unit.heads), None
        )
        groups.setdefault(config, []).append(head)
    harms: dict[str, float] = {}
    for unit, found in way.alone.items():
        if unit.site == site.name:
            part = "" if len(unit.heads) == site.spec.kv_heads else f"head {unit.heads[0]} "
            harms |= {part + words(config): value for config, value in found.items()}
    return SitePlan(site.name, tuple(tuple(heads) for heads in groups.values()), tuple(groups), harms)


def _front(way: Way, whole: float) -> tuple[FrontPoint, ...]:
    return tuple(
        FrontPoint(point.cost / whole, point.harm, len(point.choice), index == way.chosen)
        for index, point in enumerate(way.points)
    )


@contextlib.contextmanager
def _watching(wanted: bool) -> Iterator[Callable[[str], None]]:
    """Shows what is being measured, on stderr; gives what is to be told."""
    if not wanted:
        yield lambda told: None
        return
    with Console(stderr=True).status("plan") as status:
        yield lambda told: status.update(f"plan: {told}")
