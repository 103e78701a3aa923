"""Dynamic projection: many tokens' keys and values pooled into a few (Zhu et al., 2021, equation 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.eager import plain_inference
from remixer.mixers.long_short.memory import pairs, to_multiple
from remixer.mixers.long_short.pool_in_c import pool_segments_in_c, pool_whole_in_c, poolable_in_c
from remixer.mixers.long_short.pool_in_cache import pool_in_cache
from remixer.mixers.precision import at_least_float32, unrounded

# How many weights of summaries are made before they are used, where that is free to choose.
WEIGHTS_IN_CACHE = 2**21


def pool(
    pooling: Tensor,
    reads: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    segment: int | None,
    levels: int = 1,
) -> tuple[Tensor, Tensor]:
    """P^T K and P^T V with P = softmax over the tokens of (reads W_P).

    Args:
        pooling: W_P, (G, D or C, rank).
        reads: (B, G or 1, S, D or C), what the projection reads.
        key: (B, G, S, D).
        value: (B, G, S, E).
        padding: (B, S) bool, True where a key exists, or None. Of a segment without any, the summary is 0.
        segment: pool every so many tokens by themselves; None: all tokens together.
        levels: of every two segments, then of every two of these and so on, there are summaries too, made by the
            same P: a softmax over all their tokens.

    Returns:
        (B, G, J, D) and (B, G, J, E), J = rank, or nodes * rank with the node leading, level after level.
    """
    B, G, S, _ = key.shape
    heads, in_c = G, poolable_in_c(pooling, reads, key, value)
    if in_c and segment is None:
        return pool_whole_in_c(pooling, reads, key, value, padding)
    if plain_inference(pooling, key, value):
        if segment is None:
            whole = pool_in_cache(pooling, reads, key, value, padding)
            if whole is not None:
                return whole
        heads = max(1, min(G, WEIGHTS_IN_CACHE // (B * S * pooling.shape[2])))
    pool_some = _pool_in_c if in_c else _pool
    far = [
        pool_some(
            pooling[g : g + heads],
            reads if reads.shape[1] == 1 else reads[:, g : g + heads],
            key[:, g : g + heads],
            value[:, g : g + heads],
            padding,
            segment,
            levels,
        )
        for g in range(0, G, heads)
    ]
    far_key, far_value = ([pair[i] for pair in far] for i in (0, 1))
    return (torch.cat(far_key, 1), torch.cat(far_value, 1)) if len(far) > 1 else far[0]


def _pool(
    pooling: Tensor,
    reads: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    segment: int | None,
    levels: int,
) -> tuple[Tensor, Tensor]:
    """`pool` for some of the heads."""
    logits = pooling.transpose(1, 2) @ reads.transpose(2, 3)  # (B, G, rank, S)
    logits = _in_segments(logits.to(at_least_float32(logits.dtype)), 3, segment)
    if padding is None:
        P = torch.softmax(logits, -1)
    else:
        exist = _in_segments(padding[:, None, None], 3, segment)
        logits = logits.masked_fill(~exist, torch.finfo(logits.dtype).min)
        P = torch.softmax(logits, -1) * exist
    P = P.to(key.dtype).transpose(2, 3)  # (B, G, segments, rank, size)
    far = [P @ _in_segments(x, 2, segment) for x in (key, value)]
    if levels > 1:
        mass = logits.logsumexp(-1).transpose(2, 3)  # (B, G, segments, rank)
        far = list(all_levels(far[0], far[1], mass, levels))
    return far[0].flatten(2, 3), far[1].flatten(2, 3)


def _pool_in_c(
    pooling: Tensor,
    reads: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    segment: int | None,
    levels: int,
) -> tuple[Tensor, Tensor]:
    """The same by compiled code, in segments."""
    assert segment is not None
    wide = at_least_float32(key.dtype)
    with unrounded(key.device):
        logits = pooling.to(wide).transpose(1, 2) @ reads.to(wide).transpose(2, 3)
    far_key, far_value, mass = pool_segments_in_c(logits, key, value, padding, segment)
    if levels > 1:
        far_key, far_value = all_levels(far_key, far_value, mass, levels)
    return far_key.flatten(2, 3), far_value.flatten(2, 3)


def all_levels(far_key: Tensor, far_value: Tensor, mass: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Summaries of all levels, one level after the other.

    Args:
        far_key: (B, G, segments, rank, D).
        far_value: (B, G, segments, rank, E).
        mass: (B, G, segments, rank), the logarithm of what each softmax was divided by.
        levels: how many levels.

    Returns:
        (B, G, nodes, rank, D) and (B, G, nodes, rank, E).
    """
    dtype, level = far_key.dtype, Level(mass, far_key.to(mass.dtype), far_value.to(mass.dtype))
    keys, values = [far_key], [far_value]
    for _ in range(1, levels):
        level = level.merged()
        keys.append(level.key.to(dtype))
        values.append(level.value.to(dtype))
    return torch.cat(keys, 2), torch.cat(values, 2)


class Level(NamedTuple):
    """All nodes of one level of the memory, in float32 at least.

    Attributes:
        mass: (B, G, nodes, rank), the logarithm of what each softmax was divided by.
        key: (B, G, nodes, rank, D).
        value: (B, G, nodes, rank, E).
    """

    mass: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def of(cls, pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, exist: Tensor, segment: int) -> Level:
        """The lowest level, a last incomplete segment included; see `pool`."""
        logits = pooling.transpose(1, 2) @ reads.transpose(2, 3)
        logits = logits.to(at_least_float32(logits.dtype))
        least = torch.finfo(logits.dtype).min
        logits = to_multiple(logits.masked_fill(~exist[:, None, None], least), 3, segment, least)
        logits = logits.unflatten(3, (-1, segment))  # (B, G, rank, segments, size)
        P = torch.softmax(logits, -1) * _in_segments(exist[:, None, None], 3, segment)
        P = P.transpose(2, 3)
        far = (P @ _in_segments(each.to(P.dtype), 2, segment) for each in (key, value))
        return cls(logits.logsumexp(-1).transpose(2, 3).clamp(min=least), *far)

    def merged(self) -> Level:
        """The next level, every two nodes made one."""
        least = torch.finfo(self.mass.dtype).min
        two = pairs(self.mass, 2, least)  # (B, G, nodes, 2, rank)
        share = torch.softmax(two, 3)[..., None]
        key, value = ((share * pairs(each, 2)).sum(3) for each in (self.key, self.value))
        return Level(two.logsumexp(3).clamp(min=least), key, value)


def _in_segments(tokens: Tensor, dim: int, segment: int | None) -> Tensor:
    """The dimension of tokens split into (segments, tokens of each), the last one filled up with zeros."""
    if segment is None:
        return tokens.unsqueeze(dim)
    return to_multiple(tokens, dim, segment).unflatten(dim, (-1, segment))


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
