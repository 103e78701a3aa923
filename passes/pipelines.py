"""The standard pipelines."""

from __future__ import annotations

from collections.abc import Callable

from remixer.passes.base import Pipeline, Result
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.classify_masks import ClassifyMasks
from remixer.passes.einsum_to_matmul import EinsumToMatmul
from remixer.passes.extend_positions import ExtendPositions
from remixer.passes.prove_sites import ProveSites
from remixer.passes.recognise_attention import RULES, RecogniseAttention
from remixer.passes.repeat_heads_last import RepeatHeadsLast
from remixer.passes.select import Selection
from remixer.passes.settle_writes import SettleWrites
from remixer.passes.sink_repetitions import SinkRepetitions
from remixer.passes.substitute import Substitute
from remixer.passes.sweep import Sweep
from remixer.rewrite.rule import Rule


def recognition(rules: tuple[Rule, ...] = RULES, watch: Callable[[Result], None] | None = None) -> Pipeline:
    """From a captured program to one in which every attention that was understood is a proven site."""
    spelling = (SettleWrites(), EinsumToMatmul(), Canonicalise(), RepeatHeadsLast(), SinkRepetitions())
    return Pipeline((*spelling, RecogniseAttention(rules), ClassifyMasks(), ProveSites()), watch)


def replacement(
    selection: Selection,
    *,
    strict: bool = False,
    extend: ExtendPositions | None = None,
    watch: Callable[[Result], None] | None = None,
) -> Pipeline:
    """From proven sites to the rewritten program, which then takes longer inputs if that is asked for."""
    # Last, when masks and biases that nobody needs any more are gone.
    longer = () if extend is None else (extend,)
    return Pipeline((Substitute(selection, strict), Sweep(), *longer), watch)
