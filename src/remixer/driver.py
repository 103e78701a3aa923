"""The front door: look at a model's attentions, and rewrite them, in one call."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar, overload

from torch import nn
from torch.export import ExportedProgram

from remixer import mixers
from remixer.distillation.transferring import transfer as learn
from remixer.errors import NoAttentionError
from remixer.in_place.errors import InPlaceError
from remixer.in_place.putting import check_takes_mixers, put_inside
from remixer.mixers import MixerConfig
from remixer.passes.errors import UnsupportedAttentionError
from remixer.passes.extend_positions import ExtendPositions
from remixer.passes.longer_tables import How
from remixer.passes.original import Original
from remixer.passes.pipelines import replacement
from remixer.passes.recognise_attention import RULES
from remixer.passes.scale_rotary import Rotary
from remixer.passes.select import Selection
from remixer.passes.sites import sites_of
from remixer.passes.split_heads import SplitHeads
from remixer.passes.substitute import refusal
from remixer.planning.plan import Plan
from remixer.planning.planning import plan_for
from remixer.planning.wish import Wish
from remixer.recognising import recognise
from remixer.remixed import Remixed, own_weights
from remixer.report import PassReport, Report
from remixer.reporting import Steps, missed_sites, report_of
from remixer.rewrite.capture import Inputs
from remixer.rewrite.match import Miss
from remixer.rewrite.modules import keep_persistence
from remixer.rewrite.rule import Rule
from remixer.viewing.trace import Trace

Choice = str | MixerConfig | None
Rules = tuple[Rule, ...]
M = TypeVar("M", bound=nn.Module)


def explain(model: nn.Module | ExportedProgram, inputs: Inputs | None = None, *, rules: Rules = RULES) -> Report:
    """What attentions a model has, what each computes, and how far that is proven. Changes nothing.

    Args:
        model: any module that `torch.export.export` takes, or what it gave.
        inputs: example inputs: a dict by name, a tuple, or one tensor.
        rules: what recognises attention; put rules of your own in front of `remixer.RULES`.

    Returns:
        A report; print it, or look at its `sites`.

    Raises:
        CaptureError: the inputs don't fit the model, or torch.export refuses it.

    Examples:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        >>> print(explain(layer, torch.zeros(2, 8, 32)).sites[0].spec)
        4 heads of 8, bidirectional, dropout 0.1, scale 0.3536
    """
    if isinstance(model, Remixed):
        return model.report
    if (inside := getattr(model, "remixed_in_place", None)) is not None and inside.report is not None:
        return inside.report
    return report_of(recognise(model, inputs, rules), "understood")


@overload
def remix(
    model: nn.Module | ExportedProgram,
    mixer: Choice | Mapping[str, Choice] | Plan,
    inputs: Inputs | None = None,
    *,
    transfer: Iterable[Inputs] | None = None,
    strict: bool = False,
    rules: Rules = RULES,
    max_length: int | None = None,
    positions: How = "repeat",
    rotary: Rotary | None = None,
    trained_length: int | None = None,
    trace: bool = False,
    in_place: Literal[False] = False,
) -> Remixed: ...


@overload
def remix(
    model: M,
    mixer: Choice | Mapping[str, Choice] | Plan,
    inputs: Inputs | None = None,
    *,
    transfer: Iterable[Inputs] | None = None,
    strict: bool = False,
    rules: Rules = RULES,
    trace: bool = False,
    in_place: Literal[True],
) -> M: ...


def remix(
    model: nn.Module | ExportedProgram,
    mixer: Choice | Mapping[str, Choice] | Plan,
    inputs: Inputs | None = None,
    *,
    transfer: Iterable[Inputs] | None = None,
    strict: bool = False,
    rules: Rules = RULES,
    max_length: int | None = None,
    positions: How = "repeat",
    rotary: Rotary | None = None,
    trained_length: int | None = None,
    trace: bool = False,
    in_place: bool = False,
) -> nn.Module:
    r"""A copy of a model in which the chosen attentions are replaced by other token mixers.

    The model passed in is never changed, unless `in_place` asks for that, and its weights are kept with the result, for
    `transfer` to learn from. Attentions that are not chosen, not understood, or whose meaning the mixer can't carry
    over, are kept as they are, and the report says why.

    Args:
        model: any module that `torch.export.export` takes, or what it gave.
        mixer: a registered name, a config, or a mapping of patterns of site names ("encoder.*",
            r"re:layers\.[0-3]\..*") to names, configs or None. The first pattern that matches a site counts;
            None keeps the site. Or a plan; "auto" makes one that leaves half of the attentions' operations at 4,096
            tokens, by the data for transfer.
        inputs: example inputs: a dict by name, a tuple, or one tensor; two tokens or more.
        transfer: batches of data to learn from in the end, with the usual options of `remixer.transfer`.
        strict: raise if any chosen site can't take its mixer.
        rules: what recognises attention.
        max_length: let the result take inputs of this many tokens: tables of positions, buffers of a fixed length and
            limits that end before are extended, and the report says how. See `passes.extend_positions`.
        positions: what learned tables of positions hold further on, "repeat" or "interpolate".
        rotary: how to slow rotary embeddings down for `max_length`, "interpolate" or "ntk"; None leaves them.
        trained_length: the longest input of training, for `rotary`, where nothing in the graph tells.
        trace: keep the graph after each pass, as text, for `remixer.view`.
        in_place: put the mixers inside the model itself, a `PreTrainedModel` whose attention goes through transformers'
            attention interface, so that all that works with it goes on working; `remixer.undo` takes them out again.
            The model so changed is run beside the graph before it is handed back.

    Returns:
        A `torch.fx.GraphModule` with the model's call signature, its output structure and the names of its
        weights, in the model's training or eval mode, with a `report`. In place, the model itself, of which `explain`
        gives the report.

    Raises:
        CaptureError: the inputs don't fit the model, or torch.export refuses it.
        UnknownMixerError: no mixer has this name.
        SelectionError: a pattern selects nothing.
        NoAttentionError: nothing in the model could be replaced.
        AlreadyRemixedError: the model was rewritten before.
        UnsupportedAttentionError: strict, and a chosen site can't take its mixer.
        ExtendError: something ends before `max_length`, and it can't be told how it goes on.
        InPlaceError: the mixers can't stand inside this model, with the reason; it is as it was.

    Examples:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        >>> small = remix(layer, "toeplitz", torch.zeros(2, 8, 32))
        >>> small(torch.zeros(1, 100, 32)).shape, small.report.order
        (torch.Size([1, 100, 32]), 'n log n')
    """
    if in_place:
        check_takes_mixers(model)
        if max_length is not None:
            raise InPlaceError("in_place leaves a model's tables as they are: max_length is for graphs")
    if mixer == "auto" and transfer is None:
        raise ValueError('mixer="auto" measures what each attention bears: give data as transfer=')
    selection = Selection(()) if mixer == "auto" or isinstance(mixer, Plan) else _selection(mixer)
    extend = None if max_length is None else ExtendPositions(max_length, positions, rotary, trained_length)
    steps = recognise(model, inputs, rules, Trace() if trace else None)
    names = [site.name for site in sites_of(steps.program)]
    missed = missed_sites(steps)
    if not names:
        raise NoAttentionError(_nothing_found(steps, missed), report_of(steps, "understood"))
    original = Original(steps.program, extend, rules)
    if mixer == "auto":
        assert transfer is not None
        mixer = plan_for(original.program, transfer, Wish())
    if isinstance(mixer, Plan):
        selection = mixer.selection
        steps.split(SplitHeads(mixer.splits)(steps.program))
        original = Original(steps.program, extend, rules)
        names = [site.name for site in sites_of(steps.program)]
    selection.check([*names, *missed])
    _refuse_missed(selection, missed, strict)
    steps.add(replacement(selection, strict=strict, extend=extend)(steps.program))
    start = time.perf_counter()
    old = steps.program.graph_module
    result = Remixed(old, old.graph)
    result.meta = dict(old.meta)
    keep_persistence(old, result)
    own_weights(result)
    result.train(model.training if isinstance(model, nn.Module) else False)
    nodes = len(result.graph.nodes)
    steps.timings.append(PassReport("copy weights", time.perf_counter() - start, (nodes, nodes), 0))
    steps.program = steps.program.with_graph_module(result)
    result.meta["report"] = report_of(steps, "kept")
    result.meta["original"] = original
    if trace:
        result.meta["trace"] = steps.trace
    if transfer is not None:
        learn(result, transfer)
    if in_place:
        assert isinstance(model, nn.Module)  # of transformers
        return put_inside(model, result)
    return result


def _selection(mixer: Choice | Mapping[str, Choice]) -> Selection:
    entries = mixer if isinstance(mixer, Mapping) else {"*": mixer}
    if not entries:
        raise ValueError("the mapping of patterns to mixers is empty: nothing would be replaced")
    return Selection.of({pattern: _config(choice) for pattern, choice in entries.items()})


def _config(choice: Choice) -> MixerConfig | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        return mixers.get(choice).Config()
    if isinstance(choice, MixerConfig):
        mixers.mixer_of(choice)
        return choice
    raise TypeError(f"expected a mixer's name, a config such as remixer.LongShort(window=64), or None, got {choice!r}")


def _nothing_found(steps: Steps, missed: dict[str, Miss]) -> str:
    if not missed:
        return f"no attention found in {steps.model}: there is nothing to replace"
    place, miss = next(iter(missed.items()))
    return (
        f"no attention in {steps.model} was understood; of {len(missed)} candidates the first, at {place}: "
        f"{miss}. This error's report lists them all"
    )


def _refuse_missed(selection: Selection, missed: dict[str, Miss], strict: bool) -> None:
    for name, miss in missed.items():
        if strict and selection.config_for(name) is not None:
            raise UnsupportedAttentionError(refusal(name, f"it was not understood, {miss}"))
