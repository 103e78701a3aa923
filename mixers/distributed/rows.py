"""Exact attention of some queries over all keys: what a process has to do that holds a part of the queries."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.masks import added_mask, allowed_keys
from remixer.mixers.offset_bias import bias_at, existing_places
from remixer.mixers.softmax import attend
from remixer.mixers.spec import AttentionSpec


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    *,
    spec: AttentionSpec,
    queries: int,
    padding: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Rows of what `Softmax` gives.

    Args:
        query: (B, H, n, D).
        key: (B, G, S, D).
        value: (B, G, S, E).
        rows: (n,) int64, which of the queries these are.
        spec: of the attention.
        queries: T, how many there are.
        padding: (B, S) bool, or None.
        bias: by offset, (H, 2 T - 1); or dense, broadcastable to (B, H, n, S): of these rows; or None.
        sink: (H,), or None.
        dropout: probability with which weights are dropped.

    Returns:
        (B, H, n, E).
    """
    if bias is not None and spec.bias == "dense":
        return attend(query, key, value, bias, spec=spec, dropout=dropout, sink=sink)
    given = (spec, queries, key.shape[2], padding)
    allowed = allowed_keys(*given, query.device, rows)
    mask = allowed if spec.dead_rows == "zero" else added_mask(*given, query, rows)
    if bias is None:
        return attend(query, key, value, mask, spec=spec, dropout=dropout, sink=sink)
    if padding is not None and spec.skips_padding:
        place = existing_places(padding)
        ahead = place[:, None] - place.index_select(1, rows)[..., None]
    else:
        ahead = (torch.arange(key.shape[2], device=rows.device) - rows[:, None])[None]
    added = bias_at(bias, ahead, queries).transpose(0, 1).to(query.dtype)
    if allowed is None:
        return attend(query, key, value, added, spec=spec, dropout=dropout, sink=sink)
    hiding = added_mask(*given, query, rows)
    assert hiding is not None
    hidden = added + hiding if spec.dead_rows == "all" else hiding
    mixed = attend(query, key, value, torch.where(allowed, added, hidden), spec=spec, dropout=dropout, sink=sink)
    return mixed.masked_fill(~allowed.any(-1, keepdim=True), 0.0) if spec.dead_rows == "zero" else mixed
