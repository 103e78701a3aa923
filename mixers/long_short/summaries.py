"""Dynamic projection: many tokens' keys and values pooled into a few (Zhu et al., 2021, equation 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain_inference
from remixer.mixers.precision import at_least_float32

# How many weights of summaries are made before they are used, where that is free to choose.
WEIGHTS_IN_CACHE = 2**21


def pool(
    pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, segment: int | None
) -> tuple[Tensor, Tensor]:
    """P^T K and P^T V with P = softmax over the tokens of (reads W_P).

    Args:
        pooling: W_P, (G, D or C, rank).
        reads: (B, G or 1, S, D or C), what the projection reads.
        key: (B, G, S, D).
        value: (B, G, S, E).
        padding: (B, S) bool, True where a key exists, or None. Of a segment without any, the summary is 0.
        segment: pool every so many tokens by themselves; None: all tokens together.

    Returns:
        (B, G, J, D) and (B, G, J, E), J = rank, or segments * rank with the segment leading.
    """
    B, G, S, _ = key.shape
    heads = G
    if plain_inference(pooling, key, value):
        heads = max(1, min(G, WEIGHTS_IN_CACHE // (B * S * pooling.shape[2])))
    far = [
        _pool(
            pooling[g : g + heads],
            reads if reads.shape[1] == 1 else reads[:, g : g + heads],
            key[:, g : g + heads],
            value[:, g : g + heads],
            padding,
            segment,
        )
        for g in range(0, G, heads)
    ]
    far_key, far_value = ([pair[i] for pair in far] for i in (0, 1))
    return (torch.cat(far_key, 1), torch.cat(far_value, 1)) if len(far) > 1 else far[0]


def _pool(
    pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, segment: int | None
) -> tuple[Tensor, Tensor]:
    """`pool` for some of the heads."""
    logits = pooling.transpose(1, 2) @ reads.transpose(2, 3)  # (B, G, rank, S)
    logits = _in_segments(logits.to(at_least_float32(logits.dtype)), 3, segment)
    if padding is None:
        P = torch.softmax(logits, -1)
    else:
        exist = _in_segments(padding[:, None, None], 3, segment)
        P = torch.softmax(logits.masked_fill(~exist, torch.finfo(logits.dtype).min), -1) * exist
    P = P.to(key.dtype).transpose(2, 3)  # (B, G, segments, rank, size)
    far_key = (P @ _in_segments(key, 2, segment)).flatten(2, 3)
    far_value = (P @ _in_segments(value, 2, segment)).flatten(2, 3)
    return far_key, far_value


def _in_segments(tokens: Tensor, dim: int, segment: int | None) -> Tensor:
    """The dimension of tokens split into (segments, tokens of each), the last one filled up with zeros."""
    if segment is None:
        return tokens.unsqueeze(dim)
    return to_multiple(tokens, dim, segment).unflatten(dim, (-1, segment))


def to_multiple(tokens: Tensor, dim: int, size: int) -> Tensor:
    """Filled up with zeros (False) until the dimension is a multiple of size."""
    missing = -tokens.shape[dim] % size
    if plain_inference(tokens) and missing == 0:
        return tokens
    return F.pad(tokens, (0, 0) * (tokens.dim() - 1 - dim) + (0, missing))


def log_share(count: Tensor, rank: int, counted: bool, hidden: float, dtype: torch.dtype) -> Tensor:
    """What is added to a summary's score: log(count / rank) if counted, else 0; hidden where nothing exists.

    Args:
        count: how many tokens stand behind `rank` summaries.
        rank: how many summaries share them.
        counted: whether a summary weighs as many tokens as it stands for.
        hidden: the score of what isn't there.
        dtype: of the result; the logarithm is taken in float32 at least.
    """
    share = count.clamp(min=1).to(at_least_float32(dtype)) / rank
    scores = share.log() if counted else torch.zeros_like(share)
    return scores.masked_fill(count == 0, hidden).to(dtype)
