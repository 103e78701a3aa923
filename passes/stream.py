"""From a program over whole sequences to two graphs that take a prompt at once, and then one token after the other."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch import fx

from remixer.mixers.errors import NoStepError
from remixer.passes.errors import StreamError
from remixer.passes.other_sequence import OtherSequence
from remixer.passes.sites import Site, sites_of
from remixer.passes.stream_graphs import Builder, steps_through
from remixer.rewrite.program import Program, expression, shape_of


@dataclass(frozen=True)
class Streaming:
    """Two graphs of one model. Each takes the model's tensors in their order, `step` those of one token and the state.

    Attributes:
        program: that they were made from.
        length: how many tokens there may be in all.
        tokens: the symbol of the length.
        prefill: gives the outputs of the last token, and the state.
        step: gives the outputs of the token, and the new state.
        state: names of the state's tensors: the path of a site and the name of the entry.
        other: names of the inputs that are of another sequence; `step` doesn't take these.
    """

    program: Program
    length: int
    tokens: sympy.Symbol
    prefill: fx.GraphModule
    step: fx.GraphModule
    state: tuple[str, ...]
    other: tuple[str, ...] = ()


def stream(program: Program, length: int) -> Streaming:
    """The graphs that go token by token.

    What treats every token by itself stays. Positions count on from the tokens before, running sums from what they
    had reached, and every mixer from its state. What is read of another sequence, such as an encoder's states, is
    computed with the prompt and kept. That this is all that ties tokens together is for the caller to prove:
    `passes.prove_stream` runs both forms.

    Args:
        program: whose attentions are all mixers.
        length: how many tokens there may be in all.

    Raises:
        StreamError: a mixer can't go token by token, or an attention was kept.
    """
    sites = sites_of(program)
    tokens = _tokens(program, sites)
    for site in sites:
        if steps_through(site.node, tokens):
            _check(site, length)
    _check_pairs(program, tokens)
    first, names = Builder(program, tokens, length, at_once=True).build()
    then, also = Builder(program, tokens, length, at_once=False).build()
    assert names == also
    other = OtherSequence.of(program, tokens).inputs
    return Streaming(program, length, tokens, first, then, tuple(names), other)


def _tokens(program: Program, sites: list[Site]) -> sympy.Symbol:
    if not sites:
        raise StreamError(
            "cannot stream: no attention was replaced. Give remix 'softmax' for those that stay as they are"
        )
    sizes = {expression(site.node.meta["val"].shape[2]) for site in sites}
    if len(sizes) > 1:  # an encoder's too
        sizes = {expression(site.node.meta["val"].shape[2]) for site in sites if site.spec.causal}
    (size, *others) = sizes or (None,)
    if others or not isinstance(size, sympy.Symbol):
        found = ", ".join(sorted(map(str, sizes)))
        raise StreamError(f"cannot stream: the attentions have no length in common that is free to grow, but {found}")
    return size


def _check_pairs(program: Program, tokens: sympy.Symbol) -> None:
    for node in program.graph.nodes:
        shape = shape_of(node) or ()
        if sum(tokens in each.free_symbols for each in shape) > 1:
            raise StreamError(
                f"cannot stream: {node.name} has a value for every pair of tokens. An attention that was kept can't go "
                "token by token: give remix 'softmax' for it"
            )


def _check(site: Site, length: int) -> None:
    try:
        site.mixer.initial_state(1, length, torch.zeros(1, dtype=site.spec.dtype))
    except NoStepError as error:
        raise StreamError(f"cannot stream the attention at {site.name}: {error}") from error
