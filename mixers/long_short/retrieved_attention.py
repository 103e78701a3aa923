"""The Long-Short mixer's attention where far segments are attended to word for word beside their summaries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.long_short.joint_attention import hidden_score, silenced
from remixer.mixers.long_short.retrieval import Chosen
from remixer.mixers.long_short.sight import Sight
from remixer.mixers.offset_bias import existing_places
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec


@dataclass(frozen=True)
class Retrieved:
    """The chosen tokens of blocks of queries, in tiles.

    Attributes:
        key: (B, G, tiles, blocks, columns, D).
        value: (B, G, tiles, blocks, columns, E).
        bias: (B, G, tiles, groups or 1, blocks, size, columns), added to their scores.
        fewer: (B, G, tiles, 1, blocks, size or 1, summaries), added to the scores of summaries, which no longer
            stand for them; or None.
    """

    key: Tensor
    value: Tensor
    bias: Tensor
    fewer: Tensor | None


def retrieved(
    chosen: Chosen, key: Tensor, value: Tensor, sight: Sight, offsets: Tensor | None, first: int, stop: int
) -> Retrieved:
    """What the blocks of tiles first..stop-1 read.

    Args:
        chosen: of all blocks.
        key: (B, G, T, D).
        value: (B, G, T, E).
        sight: of the sequence.
        offsets: (H, 2 T - 1), a bias by offset, or None.
        first: first tile.
        stop: the tile behind the last.
    """
    spec, config, tiling = sight.spec, sight.config, sight.tiling
    size, segment, T = config.retrieve_block, config.segment, key.shape[2]
    several = tiling.length // size
    run = slice(first * several, stop * several)
    segments, there = (x[:, :, run].unflatten(2, (-1, several)) for x in (chosen.segments, chosen.there))
    position = (segments[..., None] * segment + torch.arange(segment, device=key.device)).flatten(-2)
    token = position.clamp(max=T - 1)
    B, G = key.shape[:2]
    exist = sight.exist.expand(B, -1)
    real = there.repeat_interleave(segment, -1) & (position < T)
    sample = torch.arange(B, device=key.device).view(B, 1, 1, 1, 1)
    real = real & exist[sample, token]
    counted = real
    if sight.sinks is not None:
        sink = torch.where(sight.sinks[1], sight.sinks[0], -1)[:, None, None, None, None]
        real = real & (token[..., None] != sink).all(-1)
    query = tiling.positions(first, stop, key.device).unflatten(1, (several, size))  # (tiles, blocks, size)
    if spec.causal:
        since = chosen.since[:, run].unflatten(1, (-1, several))[:, None, ..., None]
        served = torch.arange(size, device=key.device) >= since  # (B or 1, 1, tiles, blocks, size)
    else:
        start = query[:, :1, :1] - tiling.before
        counted = real = real & ((token < start) | (token >= start + tiling.span))
        served = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool, device=key.device)
    seen = (real[..., None, :] & served[..., None])[:, :, :, None]  # (B, G, tiles, 1, blocks, size or 1, columns)
    dtype = key.dtype
    bias = torch.zeros((), dtype=dtype, device=key.device).masked_fill(~seen, hidden_score(dtype))
    if offsets is not None:
        place = existing_places(exist) if spec.skips_padding else torch.arange(T, device=key.device).expand(B, -1)
        own = place[:, query.clamp(max=T - 1)][:, None, ..., None]  # (B, 1, tiles, blocks, size, 1)
        ahead = place[sample, token][..., None, :] - own
        bias = bias + _by_head(offsets, ahead, spec, T).to(dtype)
    fewer = None
    if sight.rank and config.counted:
        stood = _stood_for(sight, segments, counted, first, stop)
        fewer = _share_left(sight, stood, served, first, stop, at_least_float32(dtype)).to(dtype)
    head = torch.arange(G, device=key.device).view(1, G, 1, 1, 1)
    row = (sample * G + head) * T + token
    return Retrieved(_picked(key, row), _picked(value, row), bias, fewer)


def _picked(tokens: Tensor, row: Tensor) -> Tensor:
    """Of all rows of (B, G, T, D) these; so their gradients add up without being sorted, as indices of several axes."""
    return tokens.flatten(0, 2).index_select(0, row.flatten()).unflatten(0, row.shape)


def _by_head(offsets: Tensor, ahead: Tensor, spec: AttentionSpec, tokens: int) -> Tensor:
    """A bias (H, 2 T - 1) at offsets (B, G, tiles, blocks, size, columns), groups being put behind tiles."""
    heads = torch.arange(spec.kv_heads, device=offsets.device).view(-1, 1, 1, 1, 1)
    index = (ahead + tokens - 1).clamp(0, 2 * tokens - 2)
    return offsets.unflatten(0, (spec.kv_heads, -1))[heads, :, index].movedim(-1, 3)


def _stood_for(sight: Sight, segments: Tensor, counted: Tensor, first: int, stop: int) -> Tensor:
    """(B, G, tiles, blocks, summaries or 1), how many of the chosen tokens each summary stands for."""
    many = counted.unflatten(-1, (segments.shape[-1], -1)).sum(-1)  # (B, G, tiles, blocks, retrieve)
    if not sight.spec.causal:
        return many.sum(-1, keepdim=True)
    found = []
    for level, nodes in enumerate(sight.nodes(first, stop)):
        column = (segments >> level) - nodes[:, :1, None]  # of this tile's columns of this level
        inside = (column >= 0) & (column < nodes.shape[1])
        zeros = many.new_zeros(*many.shape[:-1], nodes.shape[1])
        found.append(zeros.scatter_add(-1, column.clamp(0, nodes.shape[1] - 1), many * inside))
    return torch.cat(found, -1)


def _share_left(sight: Sight, stood: Tensor, served: Tensor, first: int, stop: int, dtype: torch.dtype) -> Tensor:
    """The logarithm of what is left of each summary's weight for those who read the chosen tokens themselves."""
    if sight.spec.causal:
        behind = sight.counts[:, sight.memory.places(sight.nodes(first, stop))][:, None, :, None]
    else:
        behind = sight.stand_for(first, stop)[:, None, :, None]  # (B or 1, 1, tiles, 1, 1)
    left = (behind - stood).clamp(min=0)
    if not sight.spec.causal:  # as much as they weigh, see Sight.share
        left, behind = left.clamp(max=sight.rank), behind.clamp(max=sight.rank)
    some = (left.clamp(min=1).to(dtype) / behind.clamp(min=1)).log().masked_fill(left == 0, hidden_score(dtype))
    some = some.repeat_interleave(sight.rank, -1)[:, :, :, None, :, None]
    return torch.where(served[:, :, :, None, ..., None], some, 0.0)


def attention_with_retrieved(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, far: Retrieved, spec: AttentionSpec, dropout: float
) -> Tensor:
    """Softmax over [summaries; sinks; window; chosen tokens] of every query, with gradients.

    Args:
        query: (B, G, tiles, groups, length, D).
        key: (B, G, tiles, columns, D).
        value: (B, G, tiles, columns, E).
        bias: broadcastable to (B, G, tiles, groups, length, columns).
        far: the chosen tokens.
        spec: gives scale and softcap.
        dropout: probability with which weights are dropped.

    Returns:
        (B, G, tiles, groups, length, E), 0 where nothing is seen.
    """
    blocks, columns = far.key.shape[3], key.shape[3]
    near = _times(query, key.transpose(-1, -2)).unflatten(4, (blocks, -1))
    own = _by_block(query.unflatten(4, (blocks, -1)), far.key.transpose(-1, -2))
    scores = torch.cat([near, own], -1) * spec.scale  # (B, G, tiles, groups, blocks, size, columns)
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    bias = bias.expand(*bias.shape[:4], query.shape[4], -1).unflatten(4, (blocks, -1))
    if far.fewer is not None:
        bias = bias + F.pad(far.fewer, (0, columns - far.fewer.shape[-1]))
    bias = F.pad(bias, (0, far.bias.shape[-1])) + F.pad(far.bias, (columns, 0))
    weights = torch.softmax(scores.to(at_least_float32(scores.dtype)) + bias, -1)
    weights = F.dropout(silenced(weights, bias).to(value.dtype), dropout)
    mixed = _times(weights[..., :columns].flatten(4, 5), value)
    return mixed + _by_block(weights[..., columns:], far.value).flatten(4, 5)


def _times(rows: Tensor, columns: Tensor) -> Tensor:
    """Of all query heads of a key/value head at once: (..., groups, rows, n) times (..., n, m)."""
    return (rows.flatten(-3, -2) @ columns).unflatten(-2, rows.shape[-3:-1])


def _by_block(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, G, tiles, groups, blocks, size, n) times (B, G, tiles, blocks, n, m)."""
    return _times(rows.transpose(3, 4), columns).transpose(3, 4)
