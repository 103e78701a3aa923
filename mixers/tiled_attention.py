"""The Long-Short mixer's attention, tile by tile: at once for graphs and gradients, or in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.joint_attention import hidden_score, joint_attention, joint_attention_in_cache
from remixer.mixers.precision import at_least_float32
from remixer.mixers.sight import Sight, Tokens, join
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import workspace

# How many scores are made before they are used: 2 MiB of them in float32 were fastest on every CPU tried.
SCORES_IN_CACHE = 2**20


def mix_at_once(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, masked: bool, dropout: float
) -> Tensor:
    """All tiles and heads in one attention.

    Args:
        query: (B, H, T, D).
        keys: see Tokens.
        values: see Tokens.
        sight: what each tile sees.
        added: (H, 1, columns), added to the scores, or None.
        masked: whether there may be keys that don't exist; a query that sees none gives 0.
        dropout: probability with which weights are dropped.

    Returns:
        (B, H, T, E).
    """
    tiles = sight.tiling.count(query.shape[2])
    rows = sight.tiling.queries(query, sight.spec.groups, 0, tiles)
    base = sight.bias(0, tiles, query.dtype)
    bias = base if added is None else base + _by_group(added.to(query.dtype), sight.spec)
    mixed = joint_attention(
        rows.flatten(0, 2),
        join(sight.parts(keys, 0, tiles)).flatten(0, 2),
        join(sight.parts(values, 0, tiles)).flatten(0, 2),
        bias.expand(*rows.shape[:3], -1, -1, -1).flatten(0, 2),
        sight.spec,
        dropout,
    ).unflatten(0, rows.shape[:3])
    return sight.tiling.untiled(_silenced(mixed, base) if masked else mixed, query.shape[2])


def mix_in_cache(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, masked: bool
) -> Tensor:
    """A few heads at a time, and of long sequences a run of tiles. Same arguments, without gradients."""
    spec, tiling, dtype = sight.spec, sight.tiling, at_least_float32(query.dtype)
    (B, _, T, _), groups = query.shape, spec.groups
    by_group = None if added is None else _by_group(added.to(dtype), spec)
    tile = B * groups * tiling.length * sight.width  # scores of one tile and the readers of one key/value head
    out = values.near.new_empty(B, tiling.count(T), tiling.length, spec.kv_heads, groups, spec.value_dim)
    for first, stop in tiling.runs(T, max(1, SCORES_IN_CACHE // tile)):
        base = sight.bias(first, stop, dtype) if masked else sight.bias_without_padding(first, stop, dtype)
        rows = tiling.queries(query, groups, first, stop)
        key_parts, value_parts = sight.parts(keys, first, stop), sight.parts(values, first, stop)
        heads = max(1, min(spec.kv_heads, SCORES_IN_CACHE // (tile * (stop - first))))
        for g in range(0, spec.kv_heads, heads):
            some = slice(g, g + heads)
            mixed = joint_attention_in_cache(
                rows[:, some].to(dtype),
                _joined_in_place("keys", [part[:, some] for part in key_parts], dtype),
                _joined_in_place("values", [part[:, some] for part in value_parts], dtype),
                base,
                None if by_group is None else by_group[:, some],
                spec,
            )
            if masked:
                mixed = _silenced(mixed, base)
            out[:, first:stop, :, some] = mixed.permute(0, 2, 4, 1, 3, 5)
    return out.flatten(3, 4).flatten(1, 2)[:, :T].transpose(1, 2)


def _by_group(added: Tensor, spec: AttentionSpec) -> Tensor:
    """(H, 1, columns) to (1, G, 1, groups, 1, columns)."""
    return added.unflatten(0, (1, spec.kv_heads, 1, spec.groups))


def _joined_in_place(name: str, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """What `join` gives, in memory that the next call overwrites."""
    shape = (*parts[0].shape[:3], sum(part.shape[3] for part in parts), parts[0].shape[4])
    joined = workspace.take(name, shape, dtype)
    return torch.cat([part.to(dtype) for part in parts], 3, out=joined)


def _silenced(mixed: Tensor, bias: Tensor) -> Tensor:
    """0 where a row of the bias hides every column."""
    return mixed.masked_fill(~(bias > hidden_score(bias.dtype)).any(-1, keepdim=True), 0.0)
