"""The Long-Short attention in training on a CPU: summaries, sinks and window by themselves, not copied together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from remixer.mixers.eager import plain_training
from remixer.mixers.long_short.attention_by_parts import Columns, attention_by_parts
from remixer.mixers.long_short.joint_attention import silenced
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.whole import Whole, kept
from remixer.mixers.spec import AttentionSpec

# How many tiles that don't see all summaries yet are attended to at once.
TOGETHER = 4
# How large a bias is kept between calls.
MOST_KEPT = 2**22


def trainable_by_parts(
    query: Tensor, keys: Tokens, values: Tokens, spec: AttentionSpec, offsets: Tensor | None, dropout: float
) -> bool:
    """Whether these operands are differentiated on a CPU, in a form that the fused kernel takes."""
    plain = offsets is None and dropout == 0.0 and spec.softcap is None and spec.head_dim == spec.value_dim
    tensors = [each for each in (query, *keys, *values) if each is not None]
    dtypes = {each.dtype for each in tensors}
    return plain and dtypes in ({torch.float32}, {torch.float64}) and plain_training(*tensors)


def mix_in_training(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, *, masked: bool
) -> Tensor:
    """The numbers of `mix_at_once`, which explains the arguments, and its gradients.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    sight, T = sight.in_halves(), query.shape[2]
    spec, tiling, tiles = sight.spec, sight.tiling, sight.tiling.count(T)
    keep = not masked and T * sight.width <= MOST_KEPT
    bias = _bias(Whole.of(sight), tiling.length, query.dtype) if keep else sight.bias(0, tiles, query.dtype)
    runs = []
    for first, stop in _runs(sight, tiles):
        missing = min(_missing(sight, stop - 1), sight.summaries)
        tile = slice(first, stop) if bias.shape[2] > 1 else slice(None)
        parts, start = [], 0
        for key, value in zip(sight.in_parts(keys, first, stop), sight.in_parts(values, first, stop), strict=True):
            end = start + key.shape[3]
            skipped = max(missing - start, 0)
            if skipped < key.shape[3]:
                seen = (..., slice(skipped, None), slice(None))
                parts.append(Columns(key[seen], value[seen], bias[:, :, tile, ..., start + skipped : end]))
            start = end
        parts.reverse()  # what is added is added to summaries, the last part
        some = tiling.queries(query, spec.groups, first, stop)
        runs.append(attention_by_parts(some, parts, added if missing < sight.summaries else None, spec.scale))
    mixed = torch.cat(runs, 2) if len(runs) > 1 else runs[0]
    if masked:
        mixed = silenced(mixed, bias)
    return tiling.untiled(mixed, T)


@kept
def _bias(whole: Whole, length: int, dtype: torch.dtype) -> Tensor:
    """Of a sequence without padding, in tiles of this length."""
    sight = whole.sight().in_tiles_of(length)
    return sight.bias(0, sight.tiling.count(whole.tokens), dtype)


def _runs(sight: Sight, tiles: int) -> Iterator[tuple[int, int]]:
    """All tiles: some at a time while a memory reaches back to before the sequence, then the rest at once."""
    first = 0
    while first + TOGETHER < tiles and _missing(sight, first):
        yield first, first + TOGETHER
        first += TOGETHER
    yield first, tiles


def _missing(sight: Sight, tile: int) -> int:
    """How many of the first columns of this tile, and of all before it, lie before the sequence."""
    if not sight.spec.causal or not sight.rank or not isinstance(sight.config.memory, int):
        return 0
    return max(0, -int(sight.nodes(tile, tile + 1)[0][0, 0])) * sight.rank
