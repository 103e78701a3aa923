"""Splitting a mask's values into causal, window, padding and bias, and proving the split on every trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.spec import Bias, DeadRows
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
        bias: what is added where allowed.
        dead_rows: what a query that sees nothing gives.
    """

    left: int | None = None
    right: int | None = None
    padding: bool = False
    bias: Bias = "none"
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
        aligned: queries and keys are positions of one sequence, so that T = S and bands mean something.

    Raises:
        NoFitError: there is no such form.
    """
    left, right = _band(trials) if aligned else (None, None)
    padding = not all(_explains(trial, left, right, False) for trial in trials)
    for trial in trials:
        if not _explains(trial, left, right, padding):
            raise NoFitError(_contradiction(trial, left, right, padding))
    return MaskForm(left, right, padding, _bias(trials), _dead_rows(trials))


def _band(trials: Sequence[Trial]) -> tuple[int | None, int | None]:
    """How far before and after itself a query sees, in the longest trial in which all keys exist."""
    whole = [trial for trial in trials if trial.existing is None or bool(trial.existing.all())]
    trial = max(whole, key=lambda one: one.keys)
    seen = allowed_in(trial)[0].any(0).broadcast_to(trial.queries, trial.keys)
    if not seen.any():
        raise NoFitError("no query sees any key")
    queries, keys = seen.nonzero(as_tuple=True)
    before, after = int((queries - keys).max()), int((keys - queries).max())
    last = trial.keys - 1
    return (None if before == last else before), (None if after == last else after)


def _expected(trial: Trial, left: int | None, right: int | None, padding: bool) -> Tensor:
    """What the form allows in a trial: (B or 1, 1, T, S)."""
    offset = torch.arange(trial.keys) - torch.arange(trial.queries)[:, None]
    allowed = torch.ones_like(offset, dtype=torch.bool)
    if left is not None:
        allowed &= offset >= -left
    if right is not None:
        allowed &= offset <= right
    if padding and trial.existing is not None:
        return allowed & trial.existing[:, None, None, :]
    return allowed[None, None]


def _explains(trial: Trial, left: int | None, right: int | None, padding: bool) -> bool:
    return torch.equal(*torch.broadcast_tensors(allowed_in(trial), _expected(trial, left, right, padding)))


def _contradiction(trial: Trial, left: int | None, right: int | None, padding: bool) -> str:
    allowed, expected = torch.broadcast_tensors(allowed_in(trial), _expected(trial, left, right, padding))
    b, _, t, s = (allowed != expected).nonzero()[0].tolist()
    verb = "may" if allowed[b, 0, t, s] else "may not"
    return (
        f"no causal, window and padding explain the mask: of {trial.queries} queries, query {t} of row {b} "
        f"{verb} see key {s}"
    )


def _bias(trials: Sequence[Trial]) -> Bias:
    """Nothing, one value per head and offset, or anything else, where allowed."""
    form: Bias = "none"
    by_offset: dict[int, Tensor] = {}
    for trial in trials:
        if trial.mask.dtype == torch.bool:
            continue
        values = trial.mask.broadcast_to(*trial.mask.shape[:2], trial.queries, trial.keys)
        allowed = allowed_in(trial).broadcast_to(values.shape)
        if values[allowed].any():
            form = "offset"
        if trial.queries != trial.keys or not _by_offset(values, allowed, by_offset):
            form = "dense" if form == "offset" else form
        if form == "dense":
            break
    return form


def _by_offset(values: Tensor, allowed: Tensor, known: dict[int, Tensor]) -> bool:
    """Whether, for each head, all allowed entries of an offset are equal, over rows and the batch too.

    Args:
        values: (B, H, T, T).
        allowed: the same shape, bool.
        known: (H,) value of each offset met in other trials; those met here are added.
    """
    low, high = (
        _diagonals(torch.where(allowed, values.double(), filler)).amin((0, 2))
        for values, filler in ((values, torch.inf), (-values, torch.inf))
    )
    high = -high  # (H, 2 T - 1), as low: smallest and largest value of each offset
    met = low.isfinite()
    if (low != high)[met].any():
        return False
    last = values.shape[3] - 1
    for offset in range(-last, last + 1):
        column, seen = low[:, offset + last], met[:, offset + last]
        if not seen.any():
            continue
        before = known.setdefault(offset, torch.where(seen, column, torch.nan))
        both = seen & ~before.isnan()
        if (before != column)[both].any():
            return False
        known[offset] = torch.where(seen, column, before)
    return True


def _diagonals(values: Tensor) -> Tensor:
    """(B, H, T, T) to (B, H, T, 2 T - 1): entry s - t of each row in column s - t + T - 1, else infinity."""
    T = values.shape[2]
    skewed = F.pad(values.flip(2), (0, T), value=torch.inf).flatten(2)[..., : T * (2 * T - 1)]
    return skewed.unflatten(2, (T, 2 * T - 1))


def _dead_rows(trials: Sequence[Trial]) -> DeadRows:
    """What softmax makes of a row of nothing but the number that hides: it depends on its size."""
    masks = [trial.mask for trial in trials]
    lowest = min(float(mask.min()) for mask in masks if mask.dtype != torch.bool) if _additive(masks) else 0.0
    if lowest == -torch.inf or lowest > HIDDEN:
        return "zero"
    # Beside a number so large scores round to nothing, and every key weighs the same.
    return "mean" if -lowest * torch.finfo(masks[0].dtype).eps > ROUNDED_AWAY else "all"


def _additive(masks: Sequence[Tensor]) -> bool:
    return all(mask.dtype != torch.bool for mask in masks)
