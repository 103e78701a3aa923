"""The Long-Short mixer's attention, tile by tile: at once for graphs and gradients, or in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.joint_attention import hidden_score, joint_attention, joint_attention_in_cache
from remixer.mixers.precision import at_least_float32
from remixer.mixers.sight import Sight, Tokens, join
from remixer.mixers.workspace import workspace

# How many scores are made before they are used: 2 MiB of them in float32 were fastest on every CPU tried.
SCORES_IN_CACHE = 2**20


def mix_at_once(
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    masked: bool,
    dropout: float,
) -> Tensor:
    """All tiles and heads in one attention.

    Args:
        query: (B, H, T, D).
        keys: see Tokens.
        values: see Tokens.
        sight: what each tile sees.
        added: (H, 1, columns), added to the scores, or None.
        masked: whether there may be queries that see nothing; these give 0.
        dropout: probability with which weights are dropped.

    Returns:
        (B, H, T, E).
    """
    tiles = sight.tiling.count(query.shape[2])
    base = sight.bias(0, tiles, query.shape[0], query.dtype)
    mixed = joint_attention(
        sight.tiling.queries(query, 0, tiles),
        join(sight.parts(keys, 0, tiles)),
        join(sight.parts(values, 0, tiles)),
        base if added is None else base + added.to(query.dtype),
        sight.spec,
        dropout,
    )
    return sight.tiling.untiled(_silenced(mixed, base) if masked else mixed, query)


def mix_in_cache(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, masked: bool
) -> Tensor:
    """A few heads at a time, and of long sequences a run of tiles. Same arguments, without gradients."""
    spec, tiling, dtype = sight.spec, sight.tiling, at_least_float32(query.dtype)
    (B, _, T, _), groups = query.shape, spec.groups
    added = None if added is None else added.to(dtype)
    tile = B * groups * tiling.length * sight.width  # scores of one tile and the readers of one key/value head
    out = values.near.new_empty(B, tiling.count(T), tiling.length, spec.heads, spec.value_dim)
    for first, stop in tiling.runs(T, max(1, SCORES_IN_CACHE // tile)):
        base = sight.bias(first, stop, B, dtype)
        rows = tiling.queries(query, first, stop)
        key_parts, value_parts = sight.parts(keys, first, stop), sight.parts(values, first, stop)
        heads = max(1, min(spec.kv_heads, SCORES_IN_CACHE // (tile * (stop - first))))
        for g in range(0, spec.kv_heads, heads):
            some, readers = slice(g, g + heads), slice(g * groups, (g + heads) * groups)
            mixed = joint_attention_in_cache(
                rows[:, readers].to(dtype),
                _joined_in_place("keys", [part[:, :, some] for part in key_parts], dtype),
                _joined_in_place("values", [part[:, :, some] for part in value_parts], dtype),
                base,
                None if added is None else added[readers],
                spec,
            )
            if masked:
                mixed = _silenced(mixed, base)
            out[:, first:stop, :, readers] = mixed.unflatten(0, (B, -1)).transpose(2, 3)
    return out.flatten(1, 2)[:, :T].transpose(1, 2)


def _joined_in_place(name: str, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """What `join` gives, in memory that the next call overwrites."""
    shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts), parts[0].shape[4])
    joined = workspace.take(name, shape, dtype)
    return torch.cat([part.to(dtype) for part in parts], 3, out=joined).flatten(0, 1)


def _silenced(mixed: Tensor, bias: Tensor) -> Tensor:
    """0 where a row of the bias hides every column."""
    return mixed.masked_fill(~(bias > hidden_score(bias.dtype)).any(-1, keepdim=True), 0.0)
