"""The Long-Short layers in their slow, obvious form: one dense matrix of scores over all columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Columns = tuple[Tensor, Tensor, Tensor]  # keys, values (B, H, columns, D), and bool: (B or 1, queries or 1, columns)
Seen = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def dense_attention(query: Tensor, columns: Sequence[Columns], scale: float) -> Tensor:
    """One softmax over everything that a query sees; 0 where it sees nothing.

    Args:
        query: (B, H, T, D).
        columns: what there is to see, and who sees it.
        scale: factor on the scores.

    Returns:
        (B, H, T, D).
    """
    B, _, T, _ = query.shape
    key, value = (torch.cat([column[i] for column in columns], 2) for i in (0, 1))
    visible = torch.cat([seen.expand(B, T, -1) for _, _, seen in columns], 2)[:, None]
    scores = (scale * query @ key.transpose(2, 3)).masked_fill(~visible, torch.finfo(query.dtype).min)
    return (torch.softmax(scores, -1) * visible) @ value


def dense_summaries(
    pooling: Tensor, source: Tensor, key: Tensor, value: Tensor, exist: Tensor, as_seen: Seen
) -> Columns:
    """P^T K and P^T V with P = softmax over existing tokens of (source W_P), as queries see them.

    Args:
        pooling: W_P, (H, C, rank).
        source: what W_P reads, (B, H or 1, T, C).
        key: (B, H, T, D).
        value: (B, H, T, D).
        exist: (B, T) bool.
        as_seen: makes of keys and values of summaries what queries see.
    """
    logits = source @ pooling  # (B, H, T, rank)
    there = exist[:, None, :, None]
    P = torch.softmax(logits.masked_fill(~there, torch.finfo(logits.dtype).min), 2) * there
    seen = exist.any(1)[:, None, None].expand(-1, 1, pooling.shape[2])
    return *as_seen(P.transpose(2, 3) @ key, P.transpose(2, 3) @ value), seen
