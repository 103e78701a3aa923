"""What an offset bias adds to the columns that a tile of the Long-Short mixer sees."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.long_short.sight import Patch, Sight
from remixer.mixers.offset_bias import bias_at, existing_places
from remixer.mixers.precision import at_least_float32


def offset_columns(sight: Sight, bias: Tensor, first: int, stop: int) -> list[Tensor]:
    """What is added to [summaries; sinks; window] of tiles first..stop-1, as far as there are such columns.

    Tokens get the bias of their offset. A summary stands for several: it gets the logarithm of the mean of
    exp(bias) over them, so that summaries of equal keys lose nothing. These are, padded ones included, the
    tokens of its segment if causal; else those beyond the window, or all if summaries are not `counted`.

    Args:
        sight: of the sequence.
        bias: (H, 2 T - 1).
        first: first tile.
        stop: the tile behind the last.

    Returns:
        Each (B or 1, G, tiles or 1, groups, length, columns), in float32 at least.
    """
    spec, tiling, T = sight.spec, sight.tiling, sight.exist.shape[1]
    bias = bias.to(at_least_float32(bias.dtype))
    query = tiling.positions(first, stop, bias.device)
    parts = []
    if sight.rank:
        far = _nodes(sight, bias, query, first, stop) if spec.causal else _beyond(sight, bias, query)
        parts.append(far.repeat_interleave(sight.rank, -1)[None])
    place = existing_places(sight.exist) if spec.skips_padding else torch.arange(T, device=bias.device)[None]
    own = place[:, query.clamp(max=T - 1)][..., None]  # (B or 1, tiles, length, 1)
    if sight.sinks is not None:
        sinks = place.expand(sight.sinks[0].shape[0], -1).gather(1, sight.sinks[0])
        parts.append(bias_at(bias, sinks[:, None, None] - own, T).transpose(0, 1))
    if spec.skips_padding:
        keys = tiling.exist(place, first, stop)[:, :, None]
        parts.append(bias_at(bias, keys - own, T).transpose(0, 1))
    else:
        parts.append(bias_at(bias, -tiling.ahead(bias.device), T)[None, :, None])
    return [part.unflatten(1, (spec.kv_heads, spec.groups)).transpose(2, 3) for part in parts]


def offset_patches(sight: Sight, bias: Tensor, first: int, stop: int, dtype: torch.dtype) -> list[Patch]:
    """`offset_columns` as patches."""
    patches, start = [], 0
    for part in offset_columns(sight, bias, first, stop):
        patches.append(Patch(slice(None), slice(start, start + part.shape[-1]), part.to(dtype)))
        start += part.shape[-1]
    return patches


def joined_columns(sight: Sight, bias: Tensor, first: int, stop: int) -> Tensor:
    """`offset_columns` as one tensor, (B or 1, G, tiles, groups, length, columns)."""
    parts = offset_columns(sight, bias, first, stop)
    samples = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(samples, -1, stop - first, -1, -1, -1) for part in parts], -1)


def node_masses(bias: Tensor, segment: int, levels: int) -> list[Tensor]:
    """Of each level, the logarithm of the sum of exp(bias) over a node's tokens, by the offset of the first.

    Args:
        bias: (H, 2 T - 1).
        segment: tokens of a node of level 0.
        levels: how many.

    Returns:
        Each (H, offsets), from offset 1 - T on. Nodes that reach beyond the last offset have some value.
    """
    masses, size = [F.pad(bias, (0, segment - 1)).unfold(1, segment, 1).logsumexp(-1)], segment
    for _ in range(1, levels):
        last = masses[-1]
        later = (torch.arange(last.shape[1], device=bias.device) + size).clamp(max=last.shape[1] - 1)
        masses.append(torch.logaddexp(last, last[:, later]))
        size *= 2
    return masses


def _nodes(sight: Sight, bias: Tensor, query: Tensor, first: int, stop: int) -> Tensor:
    """(H, tiles, length, columns), of causal summaries."""
    size, T = sight.config.segment, sight.exist.shape[1]
    columns = []
    for node, mass in zip(sight.nodes(first, stop), node_masses(bias, size, sight.memory.levels), strict=True):
        start = node[:, None] * size - query[..., None]
        columns.append(mass[:, (start + T - 1).clamp(0, mass.shape[1] - 1)] - math.log(size))
        size *= 2
    return torch.cat(columns, -1)


def _beyond(sight: Sight, bias: Tensor, query: Tensor) -> Tensor:
    """(H, tiles, length, 1), of summaries of the whole sequence."""
    T = sight.exist.shape[1]
    start = query[:, :1] - sight.tiling.before
    end = (start + sight.tiling.span).clamp(max=T)
    start = start.clamp(min=0)
    if not sight.config.counted:
        start = end = torch.zeros_like(start)
    largest = bias.detach().amax(1, keepdim=True)
    weight = (bias - largest).exp()
    # Summed from the far end on either side, so that what is near, and weighs more, is in no difference.
    before = F.pad(weight.cumsum(1), (1, 0))
    after = F.pad(weight.flip(1).cumsum(1).flip(1), (0, 1))
    query = query.clamp(max=T - 1)

    def up_to(sums: Tensor, key: Tensor | int) -> Tensor:
        return sums[:, key - query + T - 1]

    mass = up_to(before, start) - up_to(before, 0) + up_to(after, end) - up_to(after, T)
    number = (start + T - end).clamp(min=1)
    mean = mass.clamp(min=torch.finfo(mass.dtype).tiny) / number
    return (mean.log() + largest[:, None])[..., None]
