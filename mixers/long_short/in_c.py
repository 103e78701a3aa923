"""The Long-Short attention at inference on a CPU by compiled code, see attention.c: nothing is copied into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.c_library import NUMBERS
from remixer.mixers.eager import plain_inference, unwatched
from remixer.mixers.long_short.block_scores import Tables, tables_without_padding
from remixer.mixers.long_short.column_blocks import layout_of
from remixer.mixers.long_short.compiled_attention import ATTENTION, Group, attend
from remixer.mixers.long_short.intervals import Interval, Intervals
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.whole import Whole, kept
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import empty_like_tokens

MOST_KEPT = 2**16  # tokens of a sequence whose intervals are kept between calls


def fits(
    query: Tensor, keys: Tokens, values: Tokens, spec: AttentionSpec, offsets: Tensor | None, dropout: float
) -> list[Tensor] | None:
    """All operands if they are of one dtype, in a form that the code takes; else None."""
    tensors = [each for each in (query, *keys, *values) if each is not None]
    plain = offsets is None and dropout == 0.0 and spec.softcap is None and query.dtype in NUMBERS
    return tensors if plain and len({each.dtype for each in tensors}) == 1 else None


def usable_in_c(
    query: Tensor, keys: Tokens, values: Tokens, spec: AttentionSpec, offsets: Tensor | None, dropout: float
) -> bool:
    """Whether these operands are mixed at inference on a CPU, in a form that the code takes, and there is the code."""
    tensors = fits(query, keys, values, spec, offsets, dropout)
    return tensors is not None and plain_inference(*tensors) and unwatched() and ATTENTION.proven(query.dtype)


def mix_in_c(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, *, masked: bool
) -> Tensor:
    """The numbers of `mix_at_once`, which explains the arguments, without gradients or dropout.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    groups = list(groups_of(query, keys, values, sight, added, masked))
    out = empty_like_tokens(query, query.shape[1], values.near.shape[3])
    attend(query, groups, sight.spec.scale, out)
    return out


class Asked(NamedTuple):
    """Where gradients go, see `Group`; None of what nobody asks for.

    Attributes:
        keys: (parts, B, G, n, D), of near, sinks and far.
        values: (parts, B, G, n, E), of near, sinks and far.
        scores: (B, H, T), those of scores of summaries, summed.
    """

    keys: tuple[Tensor | None, ...] = (None, None, None)
    values: tuple[Tensor | None, ...] = (None, None, None)
    scores: Tensor | None = None


def groups_of(
    query: Tensor,
    keys: Tokens,
    values: Tokens,
    sight: Sight,
    added: Tensor | None,
    masked: bool,
    asked: Asked | None = None,
) -> Iterator[Group]:
    """Summaries, level by level, sinks, and the window."""
    (near, sinks, far), scores = zip(*(asked or Asked())[:2], strict=True), asked and asked.scores
    whole, samples, wide = Whole.of(sight), query.shape[0], at_least_float32(query.dtype)
    layout = layout_of(whole)
    tables = Tables.of(sight, samples, wide) if masked else tables_without_padding(whole, samples, wide)
    ends = _kept_ends(whole) if whole.tokens <= MOST_KEPT else _ends(whole)

    def by_column(first: int, count: int) -> Tensor | None:
        return None if tables.by_column is None else tables.by_column[:, first : first + count]

    if keys.far is not None and values.far is not None:
        first, by_head = 0, None if added is None else added.detach().to(wide).contiguous()
        for stop, (low, high) in zip(layout.ends, ends.nodes, strict=True):
            key, value = (each[:, :, first:stop] for each in (keys.far, values.far))
            of_key, of_value = (each if each is None else each[:, :, :, first:stop] for each in far)
            by = (by_column(first, stop - first), tables.by_query, by_head)
            yield Group(key, value, low, high, *by, of_key, of_value, scores)
            first = stop
    if keys.sinks is not None and values.sinks is not None and sight.sinks is not None:
        of_sinks = by_column(layout.summaries, layout.sinks)
        for low, high in _sinks_in_sight(sight.sinks[0], ends.tiles, sight.spec.causal):
            yield Group(keys.sinks, values.sinks, low, high, of_sinks, None, None, *sinks)
    low, high = ends.tokens
    yield Group(keys.near, values.near, low, high, by_column(layout.first, layout.tokens), None, None, *near)


def _ends(whole: Whole) -> Intervals:
    """Intervals of columns that there are, (1, T) int32 each; those of `tiles` as they come."""
    intervals, layout = Intervals.of(whole), layout_of(whole)
    sizes = [stop - first for first, stop in zip((0, *layout.ends), layout.ends, strict=False)]
    nodes = [
        _within(low * whole.rank, high * whole.rank, size)
        for size, (low, high) in zip(sizes, intervals.nodes, strict=True)
    ]
    return Intervals(intervals.tiles, _within(*intervals.tokens, whole.tokens), nodes)


_kept_ends = kept(_ends)


def _within(low: Tensor, high: Tensor, size: int) -> Interval:
    return low.clamp(0, size).int()[None], high.clamp(0, size).int()[None]


def _sinks_in_sight(positions: Tensor, tiles: Interval, causal: bool) -> Iterator[Interval]:
    """Which sinks stand before a query's window, and which behind it: (B or 1, T) int32 each.

    Args:
        positions: (B or 1, sinks), in order.
        tiles: where windows start and end.
        causal: whether what is behind is still to come.
    """
    before, until = (
        torch.searchsorted(positions, ends.expand(len(positions), -1).contiguous(), out_int32=True) for ends in tiles
    )
    yield torch.zeros_like(before), before
    sinks = positions.shape[1]
    if not causal and bool((until < sinks).any()):
        yield until, torch.full_like(until, sinks)
