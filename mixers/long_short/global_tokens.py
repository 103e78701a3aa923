"""Global tokens of the Long-Short attention, such as class tokens (the code of Zhu et al., 2021).

All other tokens see them beside summaries and window, each once. They themselves attend in a second pass, to each
other and to what the other tokens gave in the first ("post-cls").
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from remixer.mixers.long_short.dispatch import mix
from remixer.mixers.long_short.mixer import LongShortMixer
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.softmax import attend
from remixer.mixers.spec import AttentionSpec


def mix_with_global_tokens(
    mixer: LongShortMixer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Tensor,
    padding: Tensor | None,
    seen_key: Tensor,
    seen_value: Tensor,
    seen: Tensor | None,
) -> Tensor:
    """The first pass: what `mixer` gives for the other tokens, were the global ones seen beside.

    Args:
        mixer: bidirectional, without sinks of its own.
        query: (B, H, T, D), of the other tokens.
        key: (B, G, T, D).
        value: (B, G, T, E).
        source: (B, T, C).
        padding: (B, T) bool, or None.
        seen_key: (B, G, k, D), of the global tokens, normed.
        seen_value: (B, G, k, E), normed.
        seen: (B, k) bool, which global tokens exist; None for all.

    Returns:
        (B, H, T, E).
    """
    exist = query.new_ones(1, query.shape[2], dtype=torch.bool) if padding is None else padding
    there = query.new_ones(1, seen_key.shape[2], dtype=torch.bool) if seen is None else seen
    sight = Sight.of(mixer.spec, mixer.config, exist, 0, mixer.rank, mixer.align)
    # As sinks that stand before every window, where none has them twice.
    sight = replace(sight, sinks=(torch.full_like(there, -1 - sight.tiling.before, dtype=torch.long), there))
    far_key, far_value = mixer.far(key, value, source, padding, sight) if mixer.rank else (None, None)
    keys, values = Tokens(mixer.near(key), seen_key, far_key), Tokens(mixer.near(value), seen_value, far_value)
    dropout = mixer.spec.dropout if mixer.training else 0.0
    # Masked, since what is kept for sequences without padding knows only sinks that are among the tokens.
    return mix(query, keys, values, sight, None, None, masked=True, dropout=dropout)


def attend_from_global_tokens(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    others: Tensor,
    seen: Tensor | None,
    padding: Tensor | None,
    spec: AttentionSpec,
    dropout: float,
) -> Tensor:
    """The second pass: softmax(scale * q [k; others]^T) [v; others], head by head.

    Args:
        query: (B, H, k, D), of the global tokens.
        key: (B, H, k, D), normed.
        value: (B, H, k, D), normed.
        others: (B, H, T, D), what the first pass gave.
        seen: (B, k) bool, which global tokens exist; None for all.
        padding: (B, T) bool, which of the others do; None for all.
        spec: gives the scale.
        dropout: probability with which weights are dropped.

    Returns:
        (B, H, k, D).
    """
    mask = None
    if seen is not None or padding is not None:
        parts = ((seen, key), (padding, others))
        exist = [x.new_ones(x.shape[0], x.shape[2], dtype=torch.bool) if mask is None else mask for mask, x in parts]
        mask = torch.cat(exist, 1)[:, None, None]
    key, value = torch.cat([key, others], 2), torch.cat([value, others], 2)
    return attend(query, key, value, mask, spec=spec, dropout=dropout)
