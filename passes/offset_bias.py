"""Reading a mask's bias as a value per head and offset: from a table, or linear in the offset.

Softmax doesn't see a number that is added to a whole row, so a bias is read up to one: ALiBi is often written as
slope * s in place of slope * (s - t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from remixer.mixers.offset_bias import LinearBias, OffsetBias, TableBias, dense_bias
from remixer.passes.mask_fit import MaskForm, NoFitError, expected_in
from remixer.passes.mask_trials import MaskRunner, Padding, Trial
from remixer.rewrite.program import shape_of

# Lengths at which a table is read, until the bias is the same at all offsets beyond a quarter of one.
TOKENS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class FoundOffsets:
    """A bias by offset.

    Attributes:
        bias: gives its values.
        table: the parameter that they are read from, or the slopes, where they are learned.
        skips_padding: offsets count only keys that exist.
    """

    bias: OffsetBias
    table: fx.Node | None = None
    skips_padding: bool = False


def read_offsets(runner: MaskRunner, padding: Padding | None, form: MaskForm, heads: int) -> FoundOffsets:
    """The bias of a mask as one by offset, exact on every trial.

    Args:
        runner: of the mask.
        padding: that it reads, or None.
        form: what else it means.
        heads: H.

    Raises:
        NoFitError: it is none; the message says why.
        NotTriedError: the mask can't be run at a length that this needs.
    """
    # A model in half precision is read as it is meant; one that rounds some of its numbers means that.
    widen = runner.mask.meta["val"].dtype != torch.float32
    parameters = [
        node
        for node in runner.slicer.between([runner.mask], [])
        if node.op == "get_attr" and str(node.target) in runner.parameters
    ]
    slopes = _learned_slopes(runner, parameters, heads)
    if (slopes or not parameters) and (linear := _linear(runner, padding, form, heads, slopes, widen=widen)):
        return linear
    if not parameters:
        if not widen and _linear(runner, padding, form, heads, None, widen=True):
            raise NoFitError("its bias is linear in the offset, but rounded to half precision in between")
        raise NoFitError("its bias is not linear in the offset")
    linear_by = f", nor linear in the offset by {slopes.name}" if slopes else ""
    if len(parameters) > 1:
        names = ", ".join(sorted(str(node.target) for node in parameters))
        raise NoFitError(f"its bias is computed from several parameters, {names}{linear_by}")
    try:
        found = FoundOffsets(_table(runner, padding, form, parameters[0], heads), parameters[0])
    except NoFitError as error:
        raise NoFitError(f"{error}{linear_by}") from error
    if not _fits(runner, padding, form, found, widen=widen):
        raise NoFitError("its bias has no one value per head and offset")
    return found


def _fits(runner: MaskRunner, padding: Padding | None, form: MaskForm, found: FoundOffsets, *, widen: bool) -> bool:
    """Whether a bias is exact on every trial, for two sets of the values that it is read from."""
    small, large = {}, {}
    if found.table is not None:
        recorded, generator = found.table.meta["val"], torch.Generator().manual_seed(1)
        small = {found.table: torch.randn(recorded.shape, generator=generator).to(recorded.dtype)}
        large = {found.table: -16 * small[found.table]}  # what a model clips or rectifies shows in one of them
    trials = [(trial, small) for trial in runner.trials(padding, longest=False, values=small, widen=widen)]
    trials.append((runner.long_trial(TOKENS[0], padding, values=large, widen=widen), large))
    return all(_agrees(trial, form, found, next(iter(values.values()), None)) for trial, values in trials)


def _learned_slopes(runner: MaskRunner, parameters: Sequence[fx.Node], heads: int) -> fx.Node | None:
    """The last node that holds one number, or one for each head, and through which a mask reads its parameters."""
    for node in reversed(runner.slicer.between([runner.mask], []) if parameters else []):
        shape = shape_of(node)  # in sympy: to compare a symbolic size with a number would fix it to that number
        if shape is None or sympy.prod(shape) not in (1, heads) or not node.meta["val"].is_floating_point():
            continue
        behind, under = runner.slicer.between([runner.mask], [node]), runner.slicer.between([node], [])
        if not set(parameters) & set(behind) and not any(one.op == "placeholder" for one in under):
            return node
    return None


def _linear(
    runner: MaskRunner, padding: Padding | None, form: MaskForm, heads: int, learned: fx.Node | None, *, widen: bool
) -> FoundOffsets | None:
    """The bias as slopes times the offset, of all keys or of those that exist, if it is that."""
    ones = {} if learned is None else {learned: torch.ones(learned.meta["val"].shape)}
    bias = _slopes(runner.long_trial(TOKENS[0], padding, values=ones, widen=widen), form, heads)
    found = [FoundOffsets(bias, learned, skips_padding=skips) for skips in (False, True)]
    return next((one for one in found if _fits(runner, padding, form, one, widen=widen)), None)


def _table(runner: MaskRunner, padding: Padding | None, form: MaskForm, table: fx.Node, heads: int) -> TableBias:
    """Where in a table the value of each head and offset stands: what its bias is if it holds its own places."""
    unread = NoFitError(f"its bias is not read from the table {table.target}, one entry for each head and offset")
    shape = table.meta["val"].shape
    places = torch.arange(shape.numel(), dtype=torch.float32).view(shape)
    ones = runner.long_trial(2, padding, values={table: torch.ones_like(places)}, widen=True)
    factors = _values(ones)[:, :, expected_in(ones, form)[0, 0]].unique()
    if len(factors) != 1 or not factors.item():
        raise unread
    for tokens in TOKENS:
        trial = runner.long_trial(tokens, padding, values={table: places}, widen=True)
        values, first = _by_offset(trial, form)
        found = (values / factors.item()).round().long().expand(heads, -1)
        if (found < 0).any() or (found >= places.numel()).any():
            raise unread
        bias = TableBias(found, first, float(factors))
        if not _agrees(trial, form, FoundOffsets(bias, table), places):
            raise unread
        settled = _settled(bias, trial.keys, form, places.numel())
        if settled is not None:
            return settled
        if trial.keys < tokens:  # no sequence is longer: all its offsets were met
            bias.longest = trial.keys
            return bias
    raise NoFitError(f"its bias may still change beyond an offset of {TOKENS[-1] // 4}")


def _by_offset(trial: Trial, form: MaskForm) -> tuple[Tensor, int]:
    """(H, offsets) values of the offsets that may be seen, and the first of these; from two rows of the mask."""
    values, last = _values(trial)[0], trial.keys - 1
    first = -last if form.left is None else max(-last, -form.left)
    final = last if form.right is None else min(last, form.right)
    both = torch.cat([values[:, last], values[:, 0, 1:]], 1)  # offsets -last..0, then 1..last
    return both[:, first + last : final + last + 1], first


def _settled(bias: TableBias, tokens: int, form: MaskForm, entries: int) -> TableBias | None:
    """The bias without the offsets at either end that are all alike, if it doesn't change any more there.

    Where a window ends, no offset is left to change. Otherwise the values must be the same from a quarter of
    the tokens on, and the table must hold nothing more that a longer distance could read: one entry for each
    head may be left over, as the bucket of distance 0 is where both directions have buckets of their own.
    """
    places = bias.places
    differs = (places != places[:, :1]).any(0)
    start = int(differs.long().argmax()) - 1 if differs.any() else places.shape[1] - 1
    end = places.shape[1] - 1 - int((places != places[:, -1:]).any(0).flip(0).long().argmax()) + 1
    end = max(start, min(end, places.shape[1] - 1))
    changes = max(
        0 if form.left is not None else -(bias.first + start), 0 if form.right is not None else bias.first + end
    )
    whole = form.left is not None and form.right is not None
    if changes > tokens // 4 or (entries - len(places.unique()) > len(places) and not (whole and changes == 0)):
        return None
    return TableBias(places[:, start : end + 1].clone(), bias.first + start, bias.factor)


def _slopes(trial: Trial, form: MaskForm, heads: int) -> LinearBias:
    """What the bias grows by from key to key, before and after the query."""
    values, last = _values(trial)[0].double(), trial.keys - 1
    before = last if form.left is None else min(last, form.left)
    after = last if form.right is None else min(last, form.right)
    sides = (values[:, last, last - before :], values[:, 0, : after + 1])
    return LinearBias(*(_slope(side).float().expand(heads).clone() for side in sides))


def _slope(values: Tensor) -> Tensor:
    """(H, n) values that may be linear to (H,): the slope over all, or that of two neighbours, if the same.

    Slopes are often exact between neighbours near 0, where the numbers are small.
    """
    if values.shape[1] == 1:
        return torch.zeros_like(values[:, 0])
    over_all = (values[:, -1] - values[:, 0]) / (values.shape[1] - 1)
    steps = values.diff(dim=1)
    nearest = steps.gather(1, values[:, 1:].abs().argmin(1, keepdim=True))[:, 0]
    same = (nearest - over_all).abs() <= 4 * torch.finfo(torch.float32).eps * over_all.abs()
    return torch.where(same, nearest, over_all)


def _values(trial: Trial) -> Tensor:
    """The mask as (B or 1, H or 1, T, S)."""
    return trial.mask.expand(*trial.mask.shape[:2], trial.queries, trial.keys)


def _agrees(trial: Trial, form: MaskForm, found: FoundOffsets, table: Tensor | None) -> bool:
    """Whether a trial's bias is the one found, up to a number for each row, wherever keys are seen."""
    allowed = expected_in(trial, form)
    values = torch.where(allowed, _values(trial), 0.0)
    sequence = found.bias(trial.keys, None if table is None else table.float())
    bias = dense_bias(sequence, trial.keys, trial.existing if found.skips_padding else None)
    difference = values - bias
    lowest = torch.where(allowed, difference, torch.inf).amin(-1)
    highest = torch.where(allowed, difference, -torch.inf).amax(-1)
    spread = (highest - lowest).clamp(min=0.0).amax()  # rows that see nothing: -inf
    return float(spread) <= 4 * torch.finfo(torch.float32).eps * max(1.0, float(values.abs().max()))
