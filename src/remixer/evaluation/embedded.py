"""Whether embeddings point where the teacher's do, and have the same neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.evaluation.batches import Batch, Windows, batches_of
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.outputs import Model, name_of, output_of, states_of

Pool = Literal["mean", "first"] | Callable[[Any, Tensor | None], Tensor]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a model beside its teacher's.

    Attributes:
        items: how many.
        cosine: of each with the teacher's, on average.
        lowest: the lowest of them.
        neighbours: how many of the nearest items are compared, by cosine, an item itself not counted.
        overlap: share of the teacher's neighbours that are the model's too, on average.
    """

    items: int
    cosine: float
    lowest: float
    neighbours: int
    overlap: float


def embeddings(
    model: Model, teacher: Model, items: Windows, *, pool: Pool = "mean", neighbours: int = 10
) -> Embeddings:
    """How far embeddings are the teacher's.

    Args:
        model: gives hidden states (B, T, C), or embeddings (B, C), which are taken as they are.
        teacher: does too, of the same C.
        items: inputs of N items: a dict by name, a tuple, one tensor, a Batch, or a list of those, one a call.
        pool: "mean" over the tokens that exist, the "first" of them, or a function of what the model gives and of which
            tokens exist (B, T), None without padding, to embeddings (B, C).
        neighbours: how many of the nearest items to compare.

    Raises:
        EvaluationError: there are no more items than neighbours; a model gives no states, or NaN; an item is padding.

    Examples:
        >>> identity = torch.nn.Identity()
        >>> embeddings(identity, identity, torch.randn(20, 3, 8)).overlap
        1.0
    """
    batches = items_of(items, neighbours, pool)
    return compare(embedded(model, batches, pool), embedded(teacher, batches, pool), neighbours)


def items_of(items: Windows, neighbours: int, pool: Pool) -> list[Batch]:
    """What each call is given, more items than neighbours in all."""
    if not callable(pool) and pool not in ("mean", "first"):
        raise EvaluationError(f'pool must be "mean", "first" or a function, got {pool!r}')
    batches = batches_of(items)
    many = sum(len(batch.rows()) for batch in batches)
    if not 1 <= neighbours < many:
        raise EvaluationError(
            f"of {many} items each has {many - 1} neighbours at most, not {neighbours}: give more items, or "
            "neighbours=..."
        )
    return batches


def embedded(model: Model, batches: list[Batch], pool: Pool = "mean") -> Tensor:
    """Embeddings (N, C) of all items, of length 1."""
    found = []
    for batch in batches:
        output = output_of(model, batch)
        pooled = (
            _called(pool, output, batch, model) if callable(pool) else _pooled(states_of(output, model), batch, pool)
        )
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32)).cpu()
        if not pooled.isfinite().all():
            raise EvaluationError(f"embeddings of {name_of(model)} are not finite")
        found.append(F.normalize(pooled, dim=-1))
    return torch.cat(found)


def compare(mine: Tensor, wanted: Tensor, neighbours: int) -> Embeddings:
    """Embeddings (N, C) of length 1 beside the teacher's."""
    if mine.shape != wanted.shape:
        raise EvaluationError(f"embeddings are {tuple(mine.shape)}, the teacher's {tuple(wanted.shape)}")
    cosine = (mine * wanted).sum(-1).clamp(-1.0, 1.0)
    first, other = _nearest(mine, neighbours), _nearest(wanted, neighbours)
    overlap = (first[:, :, None] == other[:, None, :]).any(1).double().mean()
    return Embeddings(len(mine), float(cosine.mean()), float(cosine.min()), neighbours, float(overlap))


def _nearest(points: Tensor, neighbours: int) -> Tensor:
    found = []
    for rows in torch.arange(len(points)).split(1024):  # never all cosines at once
        cosines = points[rows] @ points.T
        cosines[torch.arange(len(rows)), rows] = -torch.inf
        found.append(cosines.topk(neighbours).indices)
    return torch.cat(found)


def _called(pool: Callable[[Any, Tensor | None], Tensor], output: Any, batch: Batch, model: Model) -> Tensor:
    exists = None
    if batch.padding is not None:
        exists = batch.exists(batch.by_place[batch.padding].shape[1])
    pooled = pool(output, exists)
    if not isinstance(pooled, Tensor) or pooled.dim() != 2:
        given = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise EvaluationError(f"pool must give embeddings (B, C) of {name_of(model)}, it gave {given}")
    return pooled


def _pooled(states: Tensor, batch: Batch, pool: str) -> Tensor:
    if states.dim() == 2:
        return states
    exists = batch.exists(states.shape[1]).to(states.device).expand(states.shape[:2])
    if not exists.any(1).all():
        raise EvaluationError("an item has no token that exists: there is nothing to embed")
    if pool == "first":
        return states[torch.arange(len(states)), exists.long().argmax(1)]
    weights = exists.to(torch.promote_types(states.dtype, torch.float32))[..., None]
    return (states.masked_fill(~exists[..., None], 0.0) * weights).sum(1) / weights.sum(1)  # padded states may be NaN
