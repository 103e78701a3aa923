"""The Long-Short attention in training on a CPU: summaries, sinks and window by themselves, not copied together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from remixer.mixers.eager import plain_training
from remixer.mixers.long_short.attention_by_parts import Columns, attention_by_parts
from remixer.mixers.long_short.joint_attention import silenced
from remixer.mixers.long_short.retrieval import Chosen
from remixer.mixers.long_short.retrieved_attention import Retrieved, retrieved
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
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    chosen: Chosen | None = None,
    *,
    masked: bool,
) -> Tensor:
    """The numbers of `mix_at_once`, or `mix_with_retrieved`, which explain the arguments, and its gradients.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    halves, T = sight.in_halves(), query.shape[2]
    if chosen is None or _of_whole_blocks(halves, sight):
        sight = halves
    spec, tiling, tiles = sight.spec, sight.tiling, sight.tiling.count(T)
    keep = not masked and T * sight.width <= MOST_KEPT
    bias = _bias(Whole.of(sight), tiling.length, query.dtype) if keep else sight.bias(0, tiles, query.dtype)
    runs, most = [], []
    for first, stop in _runs(sight, tiles):
        far = None if chosen is None else retrieved(chosen, keys.near, values.near, sight, None, first, stop)
        tile, missing = slice(first, stop) if bias.shape[2] > 1 else slice(None), _missing(sight, stop - 1)
        parts = _columns(sight, keys, values, bias[:, :, tile], far, first, stop, missing)
        some = tiling.queries(query, spec.groups, first, stop)
        runs.append(attention_by_parts(some, parts, added if missing < sight.summaries else None, spec.scale))
        if masked:
            largest = bias[:, :, tile].amax(-1, keepdim=True)
            if far is not None:
                largest = torch.maximum(largest, _by_query(far.bias.amax(-1, keepdim=True), sight))
            most.append(largest.expand(-1, -1, stop - first, -1, -1, -1))
    mixed = torch.cat(runs, 2) if len(runs) > 1 else runs[0]
    return tiling.untiled(silenced(mixed, torch.cat(most, 2)) if masked else mixed, T)


def _columns(
    sight: Sight,
    keys: Tokens,
    values: Tokens,
    bias: Tensor,
    far: Retrieved | None,
    first: int,
    stop: int,
    missing: int,
) -> list[Columns]:
    """What tiles first..stop-1 see: far tokens, window, sinks, and summaries without the first ones, if missing."""
    parts, start = [], 0
    for key, value in zip(sight.in_parts(keys, first, stop), sight.in_parts(values, first, stop), strict=True):
        end, summaries = start + key.shape[3], start < sight.summaries
        skipped = missing if summaries else 0
        if skipped < key.shape[3]:
            shown = bias[..., start + skipped : end]
            if summaries and far is not None and far.fewer is not None:
                shown = shown + _by_query(far.fewer, sight)[..., skipped:]
            parts.append(Columns(key[:, :, :, skipped:], value[:, :, :, skipped:], shown))
        start = end
    if far is not None:
        of_blocks = far.bias.transpose(3, 4).flatten(2, 3)
        parts.append(Columns(far.key.flatten(2, 3), far.value.flatten(2, 3), of_blocks))
    return parts[::-1]  # what is added is added to summaries, the last part


def _by_query(of_blocks: Tensor, sight: Sight) -> Tensor:
    """(..., blocks, size or 1, n) to (..., length, n)."""
    return of_blocks.expand(*[-1] * (of_blocks.dim() - 2), sight.config.retrieve_block, -1).flatten(-3, -2)


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


def _of_whole_blocks(halves: Sight, sight: Sight) -> bool:
    """Whether blocks of queries that share a choice lie in these tiles as they do in those."""
    length = halves.tiling.length
    return sight.tiling.length % length == 0 and length % sight.config.retrieve_block == 0


def _missing(sight: Sight, tile: int) -> int:
    """How many of the first columns of this tile, and of all before it, lie before the sequence."""
    if not sight.spec.causal or not sight.rank or not isinstance(sight.config.memory, int):
        return 0
    return max(0, -int(sight.nodes(tile, tile + 1)[0][0, 0])) * sight.rank
