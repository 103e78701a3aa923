"""Whether a model would say next what its teacher would."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.evaluation.batches import Batch, Windows, batches_of
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.outputs import Model, log_probabilities, logits_of, name_of, pieces


@dataclass(frozen=True)
class Agreement:
    """Next tokens of a model beside its teacher's, over all tokens that exist.

    Attributes:
        tokens: after how many tokens both were asked for the next one.
        top1: share of them where both find the same one the most probable.
        overlap: share of the teacher's `top` most probable ones that are among the model's, on average.
        top: how many that is.
        kl: Kullback-Leibler divergence of the model from the teacher, KL(teacher || model), in nats, on average.
    """

    tokens: int
    top1: float
    overlap: float
    top: int
    kl: float


def agreement(model: Model, teacher: Model, windows: Windows, *, top: int = 5) -> Agreement:
    """How far a model's next tokens are its teacher's.

    Args:
        model: gives logits (B, T, V).
        teacher: does too, over the same vocabulary.
        windows: token ids (N, T), a dict of them and their attention_mask, a Batch, or a list of those, one a call.
        top: how many of the most probable tokens to compare.

    Raises:
        EvaluationError: there are no windows; the models give no logits, NaN, or fewer than `top` of them.

    Examples:
        >>> def successor(ids): return torch.nn.functional.one_hot((ids + 1) % 8, 8).float()
        >>> agreement(successor, successor, torch.arange(8)[None]).top1
        1.0
    """
    found = [compared(model, teacher, batch, top) for batch in batches_of(windows)]
    return summarise(found, top)


def compared(
    model: Model, teacher: Model, batch: Batch, top: int, logits: Tensor | None = None, expected: Tensor | None = None
) -> Tensor:
    """Same first, overlap and divergence (P, 3) of a batch's tokens; models run unless their logits are given."""
    expected = logits_of(teacher, batch) if expected is None else expected
    logits = logits_of(model, batch) if logits is None else logits
    vocabulary = expected.shape[2]
    if logits.shape[2] != vocabulary:
        raise EvaluationError(
            f"{name_of(model)} gives {logits.shape[2]} logits a token, its teacher {vocabulary}: they must be over the "
            "same vocabulary"
        )
    if not 1 <= top <= vocabulary:
        raise EvaluationError(f"top must be from 1 to the {vocabulary} tokens of the vocabulary, got {top}")
    exists = batch.exists(logits.shape[1]).expand(logits.shape[:2])
    found = []
    for places in pieces(exists.nonzero(), vocabulary):
        mine = log_probabilities(logits, places, model)
        wanted = log_probabilities(expected, places, teacher).to(mine.device)
        first = mine.argmax(-1) == wanted.argmax(-1)
        same = mine.topk(top).indices[:, :, None] == wanted.topk(top).indices[:, None, :]
        gap = wanted.exp() * (wanted - mine)
        gap = gap.masked_fill(wanted == -torch.inf, 0.0)  # what the teacher never says costs nothing
        found.append(torch.stack([first.double(), same.any(1).double().mean(1), gap.double().sum(1)], 1).cpu())
    return torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.float64)


def summarise(found: list[Tensor], top: int) -> Agreement:
    """The means over all tokens."""
    each = torch.cat(found)
    if not len(each):
        raise EvaluationError("there is nothing to evaluate on: every token is padding")
    first, overlap, kl = each.mean(0).tolist()
    return Agreement(len(each), first, overlap, top, kl)
