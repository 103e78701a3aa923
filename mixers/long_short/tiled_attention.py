"""The Long-Short mixer's attention over all its tiles at once, for graphs and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain
from remixer.mixers.long_short.joint_attention import joint_attention, silenced
from remixer.mixers.long_short.offset_columns import joined_columns
from remixer.mixers.long_short.retrieval import Chosen
from remixer.mixers.long_short.retrieved_attention import attention_with_retrieved, retrieved
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.spec import AttentionSpec

# How many scores, or entries of chosen keys, are made before they are used, where that is free to choose.
ENTRIES_IN_CACHE = 2**22


def mix_at_once(
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    offsets: Tensor | None,
    *,
    masked: bool,
    dropout: float,
) -> Tensor:
    """All tiles and heads in one attention.

    Args:
        query: (B, H, T, D).
        keys: see Tokens.
        values: see Tokens.
        sight: what each tile sees.
        added: (H,), added to the scores of summaries, or None.
        offsets: (H, 2 T - 1), a bias by offset, or None.
        masked: whether there may be keys that don't exist; a query that sees none gives 0.
        dropout: probability with which weights are dropped.

    Returns:
        (B, H, T, E).
    """
    spec, tiling, (B, _, T, _) = sight.spec, sight.tiling, query.shape
    tiles = tiling.count(T)
    base = sight.bias(0, tiles, query.dtype)
    bias = base[:, 0] if offsets is None else _by_tile(base + joined_columns(sight, offsets, 0, tiles).to(query.dtype))
    mixed = joint_attention(
        _by_tile(tiling.queries(query, spec.groups, 0, tiles)).flatten(0, 1),
        sight.joined(keys, 0, tiles).transpose(1, 2).flatten(0, 1),
        sight.joined(values, 0, tiles).transpose(1, 2).flatten(0, 1),
        bias.expand(B, -1, -1, -1, -1).flatten(0, 1),
        added,
        sight.summaries,
        spec,
        dropout,
    )
    mixed = mixed.unflatten(0, (B, tiles)).unflatten(2, (spec.kv_heads, -1)).transpose(1, 2)
    return tiling.untiled(silenced(mixed, base) if masked else mixed, T)


def _by_tile(rows: Tensor) -> Tensor:
    """(B, G, tiles, groups, length, n) to (B, tiles, H, length, n)."""
    return rows.transpose(1, 2).flatten(2, 3)


def mix_with_retrieved(
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    offsets: Tensor | None,
    chosen: Chosen,
    *,
    dropout: float,
) -> Tensor:
    """`mix_at_once` with the chosen far segments; on a CPU a run of tiles at a time, where nobody traces it."""
    spec, tiling, (B, _, T, _) = sight.spec, sight.tiling, query.shape
    tiles = most = tiling.count(T)
    if plain(query, keys.near, values.near):
        chosen_tokens = sight.config.retrieve * sight.config.segment
        scores = spec.heads * tiling.length * (sight.width + chosen_tokens)
        picked = spec.kv_heads * tiling.length // sight.config.retrieve_block * chosen_tokens * spec.head_dim
        most = max(1, ENTRIES_IN_CACHE // (B * max(scores, picked)))
    runs = []
    for first, stop in tiling.runs(T, most) if most < tiles else [(0, tiles)]:
        far = retrieved(chosen, keys.near, values.near, sight, offsets, first, stop)
        bias, _ = _whole_bias(sight, added, offsets, first, stop, query.dtype)
        rows = tiling.queries(query, spec.groups, first, stop)
        key, value = sight.joined(keys, first, stop), sight.joined(values, first, stop)
        runs.append(attention_with_retrieved(rows, key, value, bias, far, spec, dropout))
    return tiling.untiled(torch.cat(runs, 2) if len(runs) > 1 else runs[0], T)


def _whole_bias(
    sight: Sight, added: Tensor | None, offsets: Tensor | None, first: int, stop: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What is added to all scores of a run of tiles, and the part of it that says what is seen."""
    bias = base = sight.bias(first, stop, dtype)
    if added is not None:
        others = (0, sight.width - sight.summaries)
        bias = base + F.pad(_by_group(added.to(dtype), sight.spec).expand(*[-1] * 5, sight.summaries), others)
    if offsets is not None:
        bias = bias + joined_columns(sight, offsets, first, stop).to(dtype)
    return bias, base


def _by_group(added: Tensor, spec: AttentionSpec) -> Tensor:
    """(H,) to (1, G, 1, groups, 1, 1)."""
    return added.view(1, spec.kv_heads, 1, spec.groups, 1, 1)
