"""Whether mixers can stand inside a model of transformers, and whether it then gives what the graph gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from remixer.in_place.errors import InPlaceError
from remixer.in_place.interface import FORMS, OPERANDS
from remixer.in_place.looking import Look, Seen
from remixer.in_place.record import configs_of
from remixer.mixers import Mixer
from remixer.mixers.errors import NoStepError
from remixer.passes.sites import Site, sites_of
from remixer.report import Report
from remixer.rewrite.agreement import NotRunError, difference, mode
from remixer.rewrite.elsewhere import example_at, is_mask, sizes_of_example
from remixer.rewrite.inputs import Call, tensors_in
from remixer.rewrite.program import Program
from remixer.rewrite.tolerance import error_and_limit

LENGTHS = (7, 40)  # tried besides the example's own, and one longer than a window
LONGEST = 512  # windows up to this are tried on a text longer than they are
MARGIN = 10.0  # of the table's tolerance, through the whole depth of a model


def mapped(
    model: nn.Module, seen: Look, original: Program, call: Call, mixers: Mapping[str, Mixer], report: Report
) -> dict[str, Mixer]:
    """The mixer of each attention module, the exact one where an attention was kept.

    Args:
        model: of transformers.
        seen: how it computes its attention.
        original: the model as a graph in which attentions are sites.
        call: that both were run with.
        mixers: by the names of their sites.
        report: of the rewrite.

    Raises:
        InPlaceError: some attention isn't computed by one call of the interface, with the operands of its site.
    """
    if seen.raised is not None:
        raise InPlaceError(f"the model raises where only its attention functions are exchanged: {seen.raised}")
    paths = {module: path for path, module in model.named_modules()}
    calls = {paths[one.module]: one for one in seen.calls if one.module in paths}
    times = Counter(paths.get(one.module) for one in seen.calls)
    exact = {site.name: site for site in sites_of(original)}
    found = _operands(original, call)
    for name, mixer in mixers.items():
        _check_called(model, name, times)
        _check_operands(name, mixer, calls[name], found[name])
        if hasattr(calls[name].module, "mixer"):
            raise InPlaceError(f"the module at {name} has something else by the name mixer")
    switched = {id(calls[name].module.config) for name in mixers}
    reasons = {site.name: site.reason for site in report.sites}
    together = dict(mixers)
    for path, one in calls.items():
        if path in mixers or id(one.module.config) not in switched:
            continue
        if path not in exact:
            raise InPlaceError(
                f"the attention at {path} shares its masks with those replaced, and what it computes was not "
                f"understood{f': {reasons[path]}' if reasons.get(path) else ''}"
            )
        together[path] = exact[path].mixer
    forms = {seen.forms[key] for key in switched}
    if len(forms) > 1:
        raise InPlaceError(f"the model's attentions have several forms, {' and '.join(sorted(forms))}")
    for told in seen.masks:
        if "a tensor" in told:
            raise InPlaceError(f"the model asks for a mask that depends on more than places, {told}")
    return together


def _check_called(model: nn.Module, name: str, times: Mapping[str | None, int]) -> None:
    if times.get(name) == 1:
        return
    if times.get(name):
        raise InPlaceError(f"the module at {name} calls transformers' attention interface {times[name]} times")
    forms = {str(config._attn_implementation) for _, _, config in configs_of(model)} - set(FORMS)
    told = f"; forms other than {' and '.join(FORMS)} are not looked at: {', '.join(sorted(forms))}" if forms else ""
    raise InPlaceError(
        f"the attention at {name} isn't computed through transformers' attention interface by a module of that name"
        f"{told}. Leave in_place out: the graph form takes it"
    )


def _check_operands(name: str, mixer: Mixer, one: Seen, wanted: Mapping[str, Tensor]) -> None:
    missing = [operand for operand in mixer.operands if operand not in OPERANDS]
    if missing:
        raise InPlaceError(
            f"{mixer.config.name!r} at {name} needs {' and '.join(missing)}, which transformers' attention interface "
            "doesn't hand over. Leave in_place out: the graph form does"
        )
    if one.masked is False:
        raise InPlaceError(f"the mask of the attention at {name} isn't made by transformers' functions for masks")
    for operand in ("query", "key", "value", "sink"):
        if operand not in mixer.operands:
            continue
        got, expected = one.operands.get(operand), wanted[operand]
        if got is None or got.shape != expected.shape:
            shape = None if got is None else tuple(got.shape)
            raise InPlaceError(
                f"the module at {name} hands over {shape} as {operand}, and the graph has {tuple(expected.shape)}"
            )
        error, limit = error_and_limit(got, expected)
        if not error <= MARGIN * limit:
            raise InPlaceError(f"the module at {name} hands over another {operand} than the graph has, by {error:.2g}")


def _operands(original: Program, call: Call) -> dict[str, dict[str, Tensor]]:
    """What the operands of every site are for a call."""
    sites = {site.node.name: site for site in sites_of(original)}
    watcher = _Operands(original.graph_module, sites)
    with torch.no_grad(), mode(original.graph_module, training=False):
        watcher.run(*pytree.tree_leaves(call))
    return watcher.found


class _Operands(fx.Interpreter):
    """Runs a graph and keeps the operands of its sites."""

    def __init__(self, module: fx.GraphModule, sites: Mapping[str, Site]) -> None:
        super().__init__(module)
        self.sites, self.found = sites, dict[str, dict[str, Tensor]]()

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.sites:
            _, operands = self.fetch_args_kwargs_from_env(n)
            kept = {name: each.clone() for name, each in operands.items() if isinstance(each, Tensor)}
            self.found[self.sites[n.name].name] = kept
        return super().run_node(n)


def prove(model: Any, graph: Program, mixers: Mapping[str, Mixer]) -> None:
    """Compare the model that has mixers inside with the graph, at several lengths, without padding and with.

    Raises:
        InPlaceError: they differ, or the model gives something else from a cache than at once.
    """
    for call in trials(graph, mixers):
        try:
            told = difference(model, graph.graph_module, call)
        except NotRunError as error:
            told = f"raises {error}"
        if told is not None:
            shapes = ", ".join(str(tuple(each.shape)) for each in tensors_in(call))
            raise InPlaceError(f"with mixers inside the model gives something else than the graph: {told}, at {shapes}")
        if _generates(model, call, mixers):
            _prove_cache(model, call)


def trials(graph: Program, mixers: Mapping[str, Mixer]) -> list[Call]:
    """The program's example at several sizes, its masks full, and with padding in front and behind."""
    own = sizes_of_example(graph)
    windows = [side for mixer in mixers.values() for side in mixer.spec.window if side and side <= LONGEST]
    lengths = {*LENGTHS, max(windows) + 9} if windows else {*LENGTHS}
    calls = [] if own.keys() - graph.batch else [example_at(graph, own)]
    for tokens in sorted(lengths) if own.keys() - graph.batch else ():
        sizes = {}
        for symbol in own:
            least, most = graph.limits.get(symbol, (2, None))
            wanted = 3 if symbol in graph.batch else tokens
            sizes[symbol] = max(least, wanted if most is None else min(wanted, most))
        calls.append(example_at(graph, sizes))
    kinds = (0, 1, 2) if any(map(is_mask, pytree.tree_leaves(calls))) else (0,)
    return [pytree.tree_map(lambda leaf, kind=kind: _padded(leaf, kind), call) for call in calls for kind in kinds]


def _padded(leaf: Any, kind: int) -> Any:
    """A mask without padding, 0, or with some in all rows but the last: in front, 1, or behind, 2; others stay."""
    if not is_mask(leaf):
        return leaf
    leaf = torch.ones_like(leaf)
    for row in range(len(leaf) - 1 if kind else 0):
        many = leaf.shape[-1] // (3 + row)
        leaf[row].narrow(-1, 0 if kind == 1 else leaf.shape[-1] - many, many).zero_()
    return leaf


def _generates(model: Any, call: Call, mixers: Mapping[str, Mixer]) -> bool:
    """Whether the model goes on from a cache of keys and values, and all of its mixers can."""
    args, kwargs = call
    given = {name for name, each in kwargs.items() if isinstance(each, Tensor)}
    if (
        args
        or not model.can_generate()
        or not {"input_ids"} <= given <= {"input_ids", "attention_mask", "position_ids"}
    ):
        return False
    try:
        for mixer in mixers.values():
            like = torch.zeros((), dtype=mixer.spec.dtype)
            mixer.initial_state(1, 8, like)
    except NoStepError:
        return False
    return True


def _prove_cache(model: Any, call: Call) -> None:
    """The first tokens at once, then two, then one after the other, from transformers' own cache."""
    inputs = {name: each for name, each in call[1].items() if isinstance(each, Tensor)}
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    cache, start = None, 0
    with torch.no_grad(), mode(model, training=False):
        whole = model(**inputs, use_cache=False).logits
        for some in ids.split([ids.shape[1] - 5, 2, 1, 1, 1], 1):
            stop = start + some.shape[1]
            given = {
                name: each[:, 0 if name == "attention_mask" else start : stop] for name, each in inputs.items()
            }  # a mask is of all tokens so far
            try:
                outputs = model(**given, past_key_values=cache, use_cache=True)
            except NoStepError:
                return  # it says so when it is asked to
            cache, wanted, got = outputs.past_key_values, whole[:, start:stop], outputs.logits
            if mask is not None:
                wanted, got = (each[mask[:, start:stop].bool()] for each in (wanted, got))
            error, limit = error_and_limit(got, wanted)
            if not error <= MARGIN * limit:
                raise InPlaceError(
                    f"with mixers inside the model gives something else from its cache than at once, by {error:.2g} "
                    f"at token {stop - 1}"
                )
            start = stop
