"""Which form of the Long-Short attention runs: chosen by what the operands are, the same in numbers."""

from __future__ import annotations

from torch import Tensor

from remixer.mixers.eager import plain_inference
from remixer.mixers.long_short.flex import mix_by_blocks, usable
from remixer.mixers.long_short.in_c import mix_in_c, usable_in_c
from remixer.mixers.long_short.in_c_training import mix_in_c_training, trainable_in_c
from remixer.mixers.long_short.in_cache import mix_in_cache
from remixer.mixers.long_short.in_training import mix_in_training, trainable_by_parts
from remixer.mixers.long_short.retrieval import Chosen
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.tiled_attention import mix_at_once, mix_with_retrieved


def mix(
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    offsets: Tensor | None,
    chosen: Chosen | None = None,
    *,
    masked: bool,
    dropout: float,
) -> Tensor:
    """In blocks on a GPU; on a CPU by compiled code, or in cache at inference and by parts in training; else at once.

    See `mix_at_once`, and `mix_with_retrieved` where far segments were chosen.

    Returns:
        (B, H, T, E).
    """
    if chosen is None and usable(query, values.near, offsets, dropout):
        return mix_by_blocks(query, keys, values, sight, added, masked=masked)
    if chosen is None and usable_in_c(query, keys, values, sight.spec, offsets, dropout):
        return mix_in_c(query, keys, values, sight, added, masked=masked)
    if chosen is None and dropout == 0.0 and plain_inference(query, keys.near, values.near):
        return mix_in_cache(query, keys, values, sight, added, offsets, masked=masked)
    if chosen is None and trainable_in_c(query, keys, values, sight.spec, offsets, dropout):
        return mix_in_c_training(query, keys, values, sight, added, masked=masked)
    if trainable_by_parts(query, keys, values, sight.spec, offsets, dropout):
        return mix_in_training(query, keys, values, sight, added, chosen, masked=masked)
    if chosen is not None:
        return mix_with_retrieved(query, keys, values, sight, added, offsets, chosen, dropout=dropout)
    return mix_at_once(query, keys, values, sight, added, offsets, masked=masked, dropout=dropout)
