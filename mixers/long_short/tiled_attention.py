"""The Long-Short mixer's attention, tile by tile: at once for graphs and gradients, or in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain_inference
from remixer.mixers.long_short.joint_attention import hidden_score, joint_attention, joint_attention_in_cache
from remixer.mixers.long_short.offset_columns import joined_columns, offset_patches
from remixer.mixers.long_short.retrieval import Chosen
from remixer.mixers.long_short.retrieved_attention import attention_with_retrieved, retrieved
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import workspace

# How many scores, and how many entries of joined keys and values, are made before they are used: fewer would
# spend more on calls than they save, more would outgrow the caches.
SCORES_IN_CACHE = 2**22
TOKENS_IN_CACHE = 2**21


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
    return tiling.untiled(_silenced(mixed, base) if masked else mixed, T)


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
    """`mix_at_once` with the chosen far segments; where nothing is differentiated, a run of tiles at a time."""
    spec, tiling, (B, _, T, _) = sight.spec, sight.tiling, query.shape
    tiles = most = tiling.count(T)
    if plain_inference(query, keys.near, values.near):
        width = sight.width + sight.config.retrieve * sight.config.segment
        most = max(1, SCORES_IN_CACHE // (B * spec.heads * tiling.length * width))
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


def mix_in_cache(
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    offsets: Tensor | None,
    *,
    masked: bool,
) -> Tensor:
    """A run of tiles at a time, and of it a few heads. Same arguments, without gradients."""
    spec, tiling, dtype = sight.spec, sight.tiling, at_least_float32(query.dtype)
    (B, _, T, _), (G, groups) = query.shape, (spec.kv_heads, spec.groups)
    by_group = None if added is None else _by_group(added.to(dtype), spec)
    out = values.near.new_empty(B, tiling.count(T), tiling.length, G, groups, spec.value_dim)
    most = TOKENS_IN_CACHE // (B * G * sight.width * (spec.head_dim + spec.value_dim))
    for first, stop in tiling.runs(T, max(1, most)):
        patches = sight.patches(first, stop, dtype, masked)
        if offsets is not None:
            patches = [*patches, *offset_patches(sight, offsets, first, stop, dtype)]
        rows = tiling.queries(query, groups, first, stop)
        joined = (B, G, stop - first, sight.width)
        key = workspace.take("keys", (*joined, spec.head_dim), dtype)
        value = workspace.take("values", (*joined, spec.value_dim), dtype)
        sight.write_joined(keys, first, stop, key)
        sight.write_joined(values, first, stop, value)
        scores = (stop - first) * groups * tiling.length * sight.width
        for some in _chunks(B, G, SCORES_IN_CACHE // scores):
            theirs = [patch._replace(bias=_part(patch.bias, some)) for patch in patches]
            mixed = joint_attention_in_cache(
                rows[some].to(dtype),
                key[some],
                value[some],
                theirs,
                None if by_group is None else by_group[:, some[1]],
                sight.summaries,
                spec,
            )
            if masked:
                mixed = _silenced(mixed, theirs[0].bias)
            out[some[0], first:stop, :, some[1]] = mixed.permute(0, 2, 4, 1, 3, 5)
    return out.flatten(3, 4).flatten(1, 2)[:, :T].transpose(1, 2)


def _chunks(samples: int, heads: int, most: int) -> Iterator[tuple[slice, slice]]:
    """All pairs of a sample and a head, about so many at a time: some heads of a sample, or whole samples."""
    several = max(1, most // heads)
    some = -(-heads // -(-heads // max(1, most)))  # as even as possible
    for b in range(0, samples, several):
        for g in range(0, heads, some):
            yield slice(b, b + several), slice(g, g + some)


def _part(bias: Tensor, some: tuple[slice, slice]) -> Tensor:
    """Some samples and heads of a bias that may hold all of them or one for all."""
    samples, heads = (part if size > 1 else slice(None) for part, size in zip(some, bias.shape[:2], strict=True))
    return bias[samples, heads]


def _by_group(added: Tensor, spec: AttentionSpec) -> Tensor:
    """(H,) to (1, G, 1, groups, 1, 1)."""
    return added.view(1, spec.kv_heads, 1, spec.groups, 1, 1)


def _silenced(mixed: Tensor, bias: Tensor) -> Tensor:
    """0 where a row of the bias hides every column."""
    return mixed.masked_fill(~(bias > hidden_score(bias.dtype)).any(-1, keepdim=True), 0.0)
