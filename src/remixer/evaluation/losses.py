"""Perplexity, of whole windows and by position, beside that of a teacher on the same windows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.evaluation.batches import Batch, Windows, batches_of
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.outputs import Model, log_probabilities, logits_of, pieces

Buckets = int | Sequence[int]


@dataclass(frozen=True)
class Bucket:
    """Tokens that have so many others before them.

    Attributes:
        start: at least so many,
        stop: and fewer than so many.
        tokens: how many were predicted, in all windows.
        losses: mean negative log-likelihood in each window, in nats per token; None where it has no such token.
        perplexity: exp of their mean.
        ratio: to the teacher's on the same tokens, None without a teacher.
        error: standard error of the logarithm of the ratio over windows, None for less than two.
    """

    start: int
    stop: int
    tokens: int
    losses: tuple[float | None, ...]
    perplexity: float
    ratio: float | None
    error: float | None


@dataclass(frozen=True)
class Perplexity:
    """How well tokens are predicted from those before them.

    Attributes:
        tokens: how many were predicted, in all windows.
        losses: mean negative log-likelihood of each window, in nats per token.
        perplexity: exp of their mean: every window counts the same, however long.
        ratio: to the teacher's on the same windows, None without a teacher.
        error: standard error of the logarithm of the ratio over windows, None for less than two.
        buckets: the same by position.
    """

    tokens: int
    losses: tuple[float, ...]
    perplexity: float
    ratio: float | None
    error: float | None
    buckets: tuple[Bucket, ...]


def perplexity(
    model: Model, windows: Windows, teacher: Model | Perplexity | None = None, buckets: Buckets = 128
) -> Perplexity:
    """Perplexity over windows and by position, and its ratio to a teacher's.

    The ratio is paired: the mean over windows of the differences of the losses, so that its standard error is not that
    of how hard the texts are. A token counts where it and the one before it exist; padding is no position.

    Args:
        model: gives logits (B, T, V).
        windows: token ids (N, T), a dict of them and their attention_mask, a Batch, or a list of those, one a call.
        teacher: the model to compare with, or what this function gave for it.
        buckets: where the first bucket of positions ends, each further one at twice that. Or all limits, ascending.

    Raises:
        EvaluationError: there are no windows, or one of less than two tokens; the model gives no logits, or NaN.

    Examples:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 50)
        >>> round(perplexity(uniform, torch.arange(20).view(2, 10)).perplexity, 3)
        50.0
    """
    batches = windows_of(windows, buckets)
    known: Perplexity | None = None
    if teacher is not None:
        known = teacher if isinstance(teacher, Perplexity) else perplexity(teacher, windows, buckets=buckets)
    return summarise([loss for batch in batches for loss in losses_of(model, batch)], buckets, known)


def windows_of(windows: Windows, buckets: Buckets) -> list[Batch]:
    """What each call is given, all of which has something to predict; the buckets are looked at, too."""
    _limits(buckets, 0)
    batches = batches_of(windows)
    for batch in batches:
        _predicted(batch)
    return batches


def _predicted(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which tokens exist (B, T), and which of the next ones (B, T - 1) are predicted from one that does."""
    ids = batch.ids
    exists = batch.exists(ids.shape[1]).expand(ids.shape)
    predicted = exists[:, 1:] & exists[:, :-1]
    for row, many in enumerate(predicted.sum(1).tolist()):
        if not many:
            raise EvaluationError(
                f"row {row} of token ids {tuple(ids.shape)} has nothing to predict: give two tokens or more"
            )
    return exists, predicted


@dataclass(frozen=True)
class Losses:
    """Of one window: nats (P,) of the tokens that are predicted, and how many tokens stand before each (P,)."""

    nats: Tensor
    positions: Tensor


def losses_of(model: Model, batch: Batch, logits: Tensor | None = None) -> list[Losses]:
    """The losses of each row of a batch; the model is run unless its logits are given."""
    ids, (exists, predicted) = batch.ids, _predicted(batch)
    logits = logits_of(model, batch) if logits is None else logits
    nats = torch.zeros(predicted.shape, dtype=torch.float64)
    for places in pieces(predicted.nonzero(), logits.shape[2]):
        row, before = places.unbind(1)
        wanted = ids[row, before + 1].to(logits.device)
        found = log_probabilities(logits, places, model).gather(1, wanted[:, None])[:, 0]
        nats[row, before] = -found.double().cpu()
    positions = exists.cumsum(1)[:, 1:] - 1
    return [Losses(nats[row, chosen], positions[row, chosen]) for row, chosen in enumerate(predicted)]


def summarise(windows: list[Losses], buckets: Buckets, teacher: Perplexity | None) -> Perplexity:
    """What the losses of all windows say."""
    limits = _limits(buckets, max(int(window.positions.max()) for window in windows) + 1)
    losses = tuple(float(window.nats.mean()) for window in windows)
    tokens = sum(len(window.nats) for window in windows)
    if teacher is not None and (teacher.tokens, len(teacher.losses)) != (tokens, len(losses)):
        raise EvaluationError(
            f"the teacher was measured on {teacher.tokens} tokens of {len(teacher.losses)} windows, the model on "
            f"{tokens} of {len(losses)}: give both the same"
        )
    found = {limit: means for limit in itertools.pairwise(limits) if (means := _means_within(windows, *limit))}
    known = (
        {(bucket.start, bucket.stop): bucket.losses for bucket in teacher.buckets} if teacher else dict.fromkeys(found)
    )
    if known.keys() != found.keys():
        raise EvaluationError(
            f"the teacher was measured in the buckets {list(known)}, the model in {list(found)}: give both the same"
        )
    inside = tuple(
        Bucket(start, stop, many, means, _perplexity(means), *_ratio(means, known[start, stop]))
        for (start, stop), (many, means) in found.items()
    )
    whole = _ratio(losses, teacher.losses if teacher else None)
    return Perplexity(tokens, losses, _perplexity(losses), *whole, inside)


def _means_within(windows: list[Losses], start: int, stop: int) -> tuple[int, tuple[float | None, ...]] | None:
    """How many tokens have so many before them, and their mean loss in each window; None if there are none."""
    inside = [window.nats[(window.positions >= start) & (window.positions < stop)] for window in windows]
    many = sum(len(nats) for nats in inside)
    return (many, tuple(float(nats.mean()) if len(nats) else None for nats in inside)) if many else None


def _limits(buckets: Buckets, longest: int) -> list[int]:
    limits = [0, buckets] if isinstance(buckets, int) else list(buckets)
    if len(limits) < 2 or limits[0] < 0 or any(low >= high for low, high in itertools.pairwise(limits)):
        raise EvaluationError(
            f"buckets must be a length of 1 or more, or two or more ascending limits, got {buckets!r}"
        )
    while isinstance(buckets, int) and limits[-1] < longest:
        limits.append(2 * limits[-1])
    return limits


def _perplexity(losses: Sequence[float | None]) -> float:
    mean = statistics.fmean(loss for loss in losses if loss is not None)
    return math.inf if mean > 700 else math.exp(mean)  # exp of more is no float


def _ratio(losses: Sequence[float | None], before: Sequence[float | None] | None) -> tuple[float | None, float | None]:
    if before is None:
        return None, None
    pairs = zip(losses, before, strict=True)
    harms = [loss - other for loss, other in pairs if loss is not None and other is not None]
    error = statistics.stdev(harms) / math.sqrt(len(harms)) if len(harms) > 1 else None
    return _perplexity(harms), error
