"""Splitting a mask's values into causal, window, padding and bias, and proving the split on every trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remixer.mixers.spec import ALIGNMENTS, Alignment, DeadRows
from remixer.passes.mask_trials import Trial

# Added to a score, less than this hides the key. Real biases stay above; masks use -1e4, -1e9, the lowest
# number of the dtype.
HIDDEN = -5e3
ROUNDED_AWAY = 20.0  # scores beside a number that is coarser than this have no effect


@dataclass(frozen=True)
class MaskForm:
    """What a mask means: allowed = band & padding, plus a bias where allowed.

    Attributes:
        left: keys up to this many before the query are seen; None for all.
        right: keys up to this many after the query are seen; None for all.
        padding: keys that don't exist are hidden.
        pads_queries: and queries that don't exist see nothing.
        alignment: which query and key stand at the same place, if there are not as many of either.
        biased: something else than 0 is added where allowed.
        dead_rows: what a query that sees nothing gives.
    """

    left: int | None = None
    right: int | None = None
    padding: bool = False
    pads_queries: bool = False
    alignment: Alignment = "start"
    biased: bool = False
    dead_rows: DeadRows = "zero"

    @property
    def causal(self) -> bool:
        """No key after the query is seen."""
        return self.right == 0


class NoFitError(Exception):
    """The mask's values don't split; the message says where."""


def allowed_in(trial: Trial) -> Tensor:
    """Which keys a trial's mask lets each query see: bool, shaped as the mask."""
    mask = trial.mask
    return mask if mask.dtype == torch.bool else mask > HIDDEN


def fit(trials: Sequence[Trial], *, aligned: bool) -> MaskForm:
    """The one form that explains all trials exactly.

    Args:
        trials: some of them with all keys existing, one of these longer than any window.
        aligned: queries and keys are positions of one sequence, so that T = S.

    Raises:
        NoFitError: there is no such form.
    """
    forms = []
    for alignment in ("start",) if aligned else ALIGNMENTS:
        left, right = _band(trials, alignment)
        band = MaskForm(left, right, alignment=alignment if (left, right) != (None, None) else "start")
        forms += [band, replace(band, padding=True)]
        if aligned:
            forms.append(replace(band, padding=True, pads_queries=True))
    for form in forms:
        if all(_explains(trial, form) for trial in trials):
            return replace(form, biased=any(map(_biased, trials)), dead_rows=_dead_rows(trials, form))
    likely = forms[1]
    raise NoFitError(_contradiction(next(trial for trial in trials if not _explains(trial, likely)), likely))


def _band(trials: Sequence[Trial], alignment: Alignment) -> tuple[int | None, int | None]:
    """How far before and after itself a query sees, in the longest trial in which all keys exist."""
    whole = [trial for trial in trials if trial.existing is None or bool(trial.existing.all())]
    trial = max(whole, key=lambda one: one.keys)
    seen = allowed_in(trial)[0].any(0).broadcast_to(trial.queries, trial.keys)
    if not seen.any():
        raise NoFitError("no query sees any key")
    offset = _offsets(trial, alignment)
    before, after = int(-offset[seen].min()), int(offset[seen].max())
    return (None if before == -offset.min() else before), (None if after == offset.max() else after)


def _offsets(trial: Trial, alignment: Alignment) -> Tensor:
    """(T, S), by how many places a key stands behind the query."""
    shift = trial.keys - trial.queries if alignment == "end" else 0
    return torch.arange(trial.keys) - torch.arange(trial.queries)[:, None] - shift


def expected_in(trial: Trial, form: MaskForm) -> Tensor:
    """What a form allows in a trial: (B or 1, 1, T, S)."""
    offset = _offsets(trial, form.alignment)
    allowed = torch.ones_like(offset, dtype=torch.bool)
    if form.left is not None:
        allowed &= offset >= -form.left
    if form.right is not None:
        allowed &= offset <= form.right
    if not form.padding or trial.existing is None:
        return allowed[None, None]
    allowed = allowed & trial.existing[:, None, None, :]
    return allowed & trial.existing[:, None, :, None] if form.pads_queries else allowed


def _explains(trial: Trial, form: MaskForm) -> bool:
    return _equal(allowed_in(trial), expected_in(trial, form))


def _contradiction(trial: Trial, form: MaskForm) -> str:
    allowed, expected = torch.broadcast_tensors(allowed_in(trial), expected_in(trial, form))
    b, _, t, s = (allowed != expected).nonzero()[0].tolist()
    verb = "may" if allowed[b, 0, t, s] else "may not"
    return (
        f"no causal, window and padding explain the mask: of {trial.queries} queries, query {t} of row {b} "
        f"{verb} see key {s}"
    )


def _biased(trial: Trial) -> bool:
    return trial.mask.dtype != torch.bool and bool(trial.mask[allowed_in(trial)].any())


def _dead_rows(trials: Sequence[Trial], form: MaskForm) -> DeadRows:
    """What softmax makes of a row of nothing but the number that hides: it depends on its size."""
    masks = [trial.mask for trial in trials]
    if not _additive(masks):
        return "zero"
    lowest = min(float(mask[mask.isfinite()].min()) for mask in masks if mask.isfinite().any())
    if lowest > HIDDEN:
        return "zero"
    finite = not any(mask.isinf().any() for mask in masks)
    if finite and _hides_less_by_place(trials, form, lowest):
        return "existing"
    if finite and (told := _uneven(trials, form)):
        raise NoFitError(told)
    # Beside a number so large scores round to nothing, and every key weighs the same.
    if not _rounds_away(torch.tensor(lowest), masks[0].dtype):
        return "all" if finite else "zero"
    if finite:
        return "mean"
    # Two of the lowest number in a sum are -inf.
    kinds: tuple[DeadRows, ...] = ("once", "past")
    for kind in kinds:
        if all(_equal(trial.mask.isinf(), _hidden_twice(trial, form, kind)) for trial in trials):
            return kind
    return "zero"


def _uneven(trials: Sequence[Trial], form: MaskForm) -> str:
    """Where a query sees no key, but what hides some of them is far lower than what hides others; or nothing.

    Softmax then takes it to see the others.
    """
    for trial in trials:
        expected = expected_in(trial, form)
        hiding = trial.mask.broadcast_to(torch.broadcast_shapes(trial.mask.shape, expected.shape))
        spread = hiding.amax(-1) - hiding.amin(-1)
        found = ((spread > -HIDDEN) & ~expected.any(-1)).nonzero()
        if len(found):
            b, head, t = found[0].tolist()
            least, most = hiding[b, head, t].aminmax()
            return (
                f"query {t} of row {b} may see no key, but some are hidden by {least:.3g} and others by {most:.3g}: "
                "it sees the others"
            )
    return ""


def _rounds_away(number: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether a number hides keys so well that nothing of their scores is left."""
    return -number * torch.finfo(dtype).eps > ROUNDED_AWAY


def _hides_less_by_place(trials: Sequence[Trial], form: MaskForm, lowest: float) -> bool:
    """Whether the lowest number hides the keys that don't exist, and one far above it hides others as well."""
    if (form.left, form.right) == (None, None):
        return False
    for trial in trials:
        exist, seen = expected_in(trial, replace(form, left=None, right=None)), expected_in(trial, form)
        if not _equal(trial.mask > lowest / 2, exist) or not (seen | _rounds_away(trial.mask, trial.mask.dtype)).all():
            return False
    return True


def _hidden_twice(trial: Trial, form: MaskForm, kind: DeadRows) -> Tensor:
    exist = expected_in(trial, replace(form, left=None, right=None))
    if kind == "once":
        return ~expected_in(trial, replace(form, padding=False)) & ~exist
    to_come = ~expected_in(trial, replace(form, padding=False, left=None))
    return to_come | (~expected_in(trial, replace(form, padding=False, right=None)) & ~exist)


def _equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(*torch.broadcast_tensors(first, second))


def _additive(masks: Sequence[Tensor]) -> bool:
    return all(mask.dtype != torch.bool for mask in masks)
