"""Which keys each query of a softmax attention may see, and how the others are hidden."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from remixer.mixers.spec import AttentionSpec

# Added to scores, it hides a key beside others, yet in a row of hidden keys the scores still tell them apart.
HIDING = -1e4


def erasing(dtype: torch.dtype) -> float:
    """Added to scores, it leaves nothing of them, yet is far above the lowest number."""
    return -1e30 if torch.finfo(dtype).max > 1e30 else -3e4


def allowed_keys(
    spec: AttentionSpec,
    queries: int,
    keys: int,
    padding: Tensor | None,
    device: torch.device,
    rows: Tensor | None = None,
) -> Tensor | None:
    """Which keys each query may see by causality, window and padding.

    Args:
        spec: of the attention.
        queries: T.
        keys: S.
        padding: (B, S) bool, or None.
        device: of the mask.
        rows: which of the queries are asked for, (n,) int64; all, if None.

    Returns:
        Bool, broadcastable to (B, 1, T or n, S), or None where every query sees every key.
    """
    near, exist = near_keys(spec, queries, keys, device, rows), existing_keys(spec, padding, rows)
    return near if exist is None else exist if near is None else near & exist


def near_keys(
    spec: AttentionSpec, queries: int, keys: int, device: torch.device, rows: Tensor | None = None
) -> Tensor | None:
    """Which keys each query may see by causality and window: (T or n, S) bool, or None for all."""
    if not (spec.causal or spec.windowed):
        return None
    places = torch.arange(queries, device=device) if rows is None else rows
    offset = torch.arange(keys, device=device) - places[:, None]
    if spec.alignment == "end":
        offset = offset - (keys - queries)
    left, right = spec.window
    near = None
    if spec.causal:
        near = offset <= 0
    elif right is not None:
        near = offset <= right
    if left is not None:
        before = offset >= -left
        near = before if near is None else near & before
    return near


def existing_tokens(padding: Tensor | None, like: Tensor) -> Tensor:
    """(B, T) bool, which tokens of (B, G, T, E) exist: all, without a padding."""
    return like.new_ones(like.shape[0], like.shape[2], dtype=torch.bool) if padding is None else padding


def existing_keys(spec: AttentionSpec, padding: Tensor | None, rows: Tensor | None = None) -> Tensor | None:
    """Which keys each query may see by padding: bool, broadcastable to (B, 1, T or n, S), or None for all."""
    if padding is None:
        return None
    exist = padding[:, None, None, :]
    if not spec.pads_queries:
        return exist
    asking = padding if rows is None else padding.index_select(1, rows)
    return exist & asking[:, None, :, None]


def added_mask(
    spec: AttentionSpec,
    queries: int,
    keys: int,
    padding: Tensor | None,
    like: Tensor,
    rows: Tensor | None = None,
) -> Tensor | None:
    """0 for the keys that each query may see, and for others a number that makes dead rows what they are.

    Args:
        spec: says what they are.
        queries: T.
        keys: S.
        padding: (B, S) bool, or None.
        like: gives dtype and device.
        rows: which of the queries are asked for, (n,) int64; all, if None.

    Returns:
        Broadcastable to (B, 1, T or n, S), or None where every query sees every key.
    """
    near, exist = near_keys(spec, queries, keys, like.device, rows), existing_keys(spec, padding, rows)
    seen = torch.zeros((), dtype=like.dtype, device=like.device)
    hidden = HIDING if spec.dead_rows == "all" else torch.finfo(like.dtype).min
    if spec.dead_rows in ("past", "once") and near is not None and exist is not None:
        padded = torch.where(exist, seen, hidden)
        if spec.dead_rows == "once":
            return torch.where(near, padded, padded + hidden)
        past = near_keys(replace(spec, window=(None, spec.window[1])), queries, keys, like.device, rows)
        padded = torch.where(near, padded, padded + hidden)
        return padded if past is None else torch.where(past, padded, -torch.inf)
    if spec.dead_rows == "existing" and near is not None and exist is not None:
        return torch.where(exist, torch.where(near, seen, erasing(like.dtype)), hidden)
    allowed = near if exist is None else exist if near is None else near & exist
    return None if allowed is None else torch.where(allowed, seen, hidden)
