"""The Long-Short attention in training on a CPU: summaries, sinks and window by themselves, not copied together."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.eager import plain_training
from remixer.mixers.long_short.attention_by_parts import Columns, attention_by_parts
from remixer.mixers.long_short.joint_attention import silenced
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.whole import Whole, kept
from remixer.mixers.spec import AttentionSpec

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
    parts, start = [], 0
    for key, value in zip(sight.in_parts(keys, 0, tiles), sight.in_parts(values, 0, tiles), strict=True):
        stop = start + key.shape[3]
        parts.append(Columns(key, value, bias[..., start:stop]))
        start = stop
    parts.reverse()  # what is added is added to summaries, the last part
    mixed = attention_by_parts(tiling.queries(query, spec.groups, 0, tiles), parts, added, spec.scale)
    if masked:
        mixed = silenced(mixed, bias)
    return tiling.untiled(mixed, T)


@kept
def _bias(whole: Whole, length: int, dtype: torch.dtype) -> Tensor:
    """Of a sequence without padding, in tiles of this length."""
    sight = whole.sight().in_tiles_of(length)
    return sight.bias(0, sight.tiling.count(whole.tokens), dtype)
