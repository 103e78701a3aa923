"""The Long-Short attention at inference on a CPU: a few tiles and heads at a time, whose scores stay in cache.

Columns that all tiles share are multiplied once for all of them, windows are read where they lie, and the softmax is
taken in base 2, which is the faster exponential.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.long_short.exponentials import IN_BASE_2, in_range
from remixer.mixers.long_short.joint_attention import hidden_score
from remixer.mixers.long_short.offset_columns import offset_patches
from remixer.mixers.long_short.sight import Patch, Sight, Tokens
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import workspace

# How many scores are made before they are used: fewer would spend more on calls than they save.
SCORES_IN_CACHE = 5 * 2**18


class Part(NamedTuple):
    """Some columns of the tiles of a run.

    Attributes:
        key: (B, G, tiles or 1, columns, D); 1 where all tiles share them.
        value: (B, G, tiles or 1, columns, E).
        patches: what is added to the scores, its columns counted within the part.
    """

    key: Tensor
    value: Tensor
    patches: list[Patch]


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
    """The numbers of `mix_at_once`, which explains the arguments, without gradients or dropout.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    sight = sight.in_halves()
    spec, tiling, dtype = sight.spec, sight.tiling, at_least_float32(query.dtype)
    (B, _, T, _), (G, groups) = query.shape, (spec.kv_heads, spec.groups)
    by_group = None if added is None else added.to(dtype).view(1, G, 1, groups, 1, 1)
    out = query.new_empty(B, tiling.count(T), tiling.length, G, groups, spec.value_dim)  # merging heads copies nothing
    for first, stop in tiling.runs(T, max(1, SCORES_IN_CACHE // (groups * tiling.length * sight.width))):
        patches = sight.patches(first, stop, dtype, masked)
        if offsets is not None:
            patches = [*patches, *offset_patches(sight, offsets, first, stop, dtype)]
        if by_group is not None:
            patches = [*patches, Patch(slice(None), slice(0, sight.summaries), by_group)]
        rows = tiling.queries(query, groups, first, stop)
        far = list(zip(sight.far_in_parts(keys, first, stop), sight.far_in_parts(values, first, stop), strict=True))
        scores = (stop - first) * groups * tiling.length * sight.width
        for some in _chunks(B, G, SCORES_IN_CACHE // scores):
            pairs = [(key[some].to(dtype), value[some].to(dtype)) for key, value in far]
            key = tiling.keys_in_cache(keys.near[some], first, stop, dtype, "keys")
            pairs.append((key, tiling.keys_in_cache(values.near[some], first, stop, dtype, "values")))
            theirs = [patch._replace(bias=_part(patch.bias, some)) for patch in patches]
            parts, start = [], 0
            for key, value in pairs:
                parts.append(Part(key, value, _within(theirs, start, start + key.shape[3])))
                start += key.shape[3]
            mixed, total = _attend(rows[some].to(dtype), parts, spec, masked)
            torch.div(mixed, total, out=out[some[0], first:stop, :, some[1]].permute(0, 3, 1, 4, 2, 5))
    return out.flatten(3, 4).flatten(1, 2)[:, :T].transpose(1, 2)


def _attend(query: Tensor, parts: Sequence[Part], spec: AttentionSpec, shifted: bool) -> tuple[Tensor, Tensor]:
    """One softmax over the columns of all parts, before it is divided by its sum.

    Args:
        query: (B, G, tiles, groups, T, D).
        parts: the columns.
        spec: gives scale and softcap.
        shifted: whether the largest score of a row is subtracted from all. Without it, it is done all the same if
            some row turns out to need it.

    Returns:
        (B, G, tiles, groups, T, E) and the sums (B, G, tiles, groups, T, 1); 0 and not 0 where all columns are hidden.
    """
    shape = query.shape[:-1]
    # Of a tile's or of all tiles' queries, those that read one key/value head in one product.
    rows = query.reshape(-1, shape[3] * shape[4], query.shape[5])
    scores = [_scores(rows, part, number, shape, spec) for number, part in enumerate(parts)]
    by_row = [each.view(-1, each.shape[2]) for each in scores]
    if shifted:
        largest = by_row[0].amax(1, keepdim=True)
        for each in by_row[1:]:
            torch.maximum(largest, each.amax(1, keepdim=True), out=largest)
        largest.clamp_(min=hidden_score(query.dtype) / 2)
        for each in by_row:
            each.sub_(largest)
    total = by_row[0].exp2_().sum(1, keepdim=True)
    for each in by_row[1:]:
        total += each.exp2_().sum(1, keepdim=True)
    if not shifted and not in_range(total):
        return _attend(query, parts, spec, True)
    mixed = workspace.take("mixed", (*rows.shape[:2], parts[0].value.shape[-1]), query.dtype)
    for number, (weights, part) in enumerate(zip(scores, parts, strict=True)):
        values = part.value.flatten(0, 2)
        _multiply(mixed.view(values.shape[0], -1, values.shape[2]), weights, values, beta=min(number, 1))
    return mixed.view(*shape, -1), total.clamp_(min=torch.finfo(total.dtype).tiny).view(*shape, 1)


def _scores(rows: Tensor, part: Part, number: int, shape: torch.Size, spec: AttentionSpec) -> Tensor:
    """The scores of a part's columns, in base 2: (B G tiles, groups T, columns), or (B G, tiles groups T, columns)."""
    keys = part.key.flatten(0, 2)
    rows = rows.view(keys.shape[0], -1, rows.shape[2])
    scores = workspace.take(f"scores {number}", (*rows.shape[:2], keys.shape[1]), rows.dtype)
    if spec.softcap is None:
        _multiply(scores, rows, keys.transpose(1, 2), alpha=spec.scale * IN_BASE_2)
    else:
        _multiply(scores, rows, keys.transpose(1, 2), alpha=spec.scale / spec.softcap)
        scores.tanh_().mul_(spec.softcap * IN_BASE_2)
    by_tile = scores.view(*shape, -1)
    for patch in part.patches:
        by_tile[:, :, patch.tiles, :, :, patch.columns].add_(patch.bias, alpha=IN_BASE_2)
    return scores


def _multiply(out: Tensor, left: Tensor, right: Tensor, beta: float = 0.0, alpha: float = 1.0) -> None:
    """Out = beta out + alpha left right, of 3-D tensors; a single product by the routine that shares it out."""
    if len(out) == 1:
        out[0].addmm_(left[0], right[0], beta=beta, alpha=alpha)
    else:
        out.baddbmm_(left, right, beta=beta, alpha=alpha)


def _within(patches: Sequence[Patch], start: int, stop: int) -> list[Patch]:
    """What of the patches lies in the columns start..stop-1, counted from there on."""
    found = []
    for patch in patches:
        first, last, _ = patch.columns.indices(stop)
        columns = slice(max(first, start), last)
        if columns.start < columns.stop:
            bias = patch.bias
            if bias.shape[-1] > 1:
                bias = bias[..., columns.start - first : columns.stop - first]
            here = slice(columns.start - start, columns.stop - start)
            found.append(Patch(patch.tiles, here, bias))
    return found


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
