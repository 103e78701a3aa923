"""The Long-Short attention through FlexAttention: one fused kernel on GPUs, which skips what no query sees.

Every query scores the columns [summaries; sinks; tokens] of its sequence, all samples' in their order; a block mask
says which blocks of 128 queries and 128 columns have to be looked at, and a mask which of their scores count. Nothing
is copied into tiles: beside queries, keys, values and the output there are (B, columns) tables of what exists, and
those of the block mask, of (T / 128)^2 integers. Without a GPU, FlexAttention gives the same numbers by all scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.long_short.intervals import BLOCK, Intervals, intervals_of
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.summaries import log_share
from remixer.mixers.precision import at_least_float32

HEAD_SIZES = (16, 32, 64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def usable(query: Tensor, value: Tensor, offsets: Tensor | None, dropout: float) -> bool:
    """Whether the fused kernel takes these operands here: on a GPU of compute capability 8.0 at least, see `fits`."""
    if query.device.type != "cuda" or torch.compiler.is_compiling() or type(query) is not Tensor:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(query) or not fits(query, value, offsets, dropout):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def fits(query: Tensor, value: Tensor, offsets: Tensor | None, dropout: float) -> bool:
    """Whether the fused kernel takes such operands; the tiled form takes all.

    Args:
        query: (B, H, T, D) in one of DTYPES, T being a block at least and D one of HEAD_SIZES.
        value: (B, G, S, E), E being one of HEAD_SIZES.
        offsets: None, since it knows no bias by offset.
        dropout: 0, since it drops no weights.
    """
    sizes = query.shape[3] in HEAD_SIZES and value.shape[3] in HEAD_SIZES
    return sizes and query.dtype in DTYPES and query.shape[2] >= BLOCK and offsets is None and dropout == 0.0


def mix_by_blocks(query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None) -> Tensor:
    """The same numbers as `mix_at_once`, which explains the arguments, in one call of FlexAttention.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    attend = _compiled if query.device.type == "cuda" else _flex_attention()
    key, value = joined(keys).to(query.dtype), joined(values).to(query.dtype)
    columns = Columns.of(sight, query)
    spec = sight.spec
    mixed = attend(
        query,
        key,
        value,
        score_mod=score_of(columns, spec.softcap, added),
        block_mask=_block_mask(sight, mask_of(columns)),
        scale=spec.scale,
        enable_gqa=spec.groups > 1,
    )
    return mixed.to(values.near.dtype)


def joined(tokens: Tokens) -> Tensor:
    """Keys or values of all columns, (B, G, columns, D): summaries, sinks, tokens."""
    parts = [part for part in (tokens.far, tokens.sinks, tokens.near) if part is not None]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


class Columns(NamedTuple):
    """What mask and scores look up.

    Attributes:
        intervals: what queries see if it exists.
        coordinate: (B, columns), of every sample.
        there: (B, columns) bool, which exist.
        share: (B, columns), added to the scores of causal summaries, else 0; or, bidirectional, (B, T), what each
            query adds to its scores of all summaries; or None.
        alone: (B, T) bool, queries for which summaries stand for nothing, or None.
    """

    intervals: Intervals
    coordinate: Tensor
    there: Tensor
    share: Tensor | None = None
    alone: Tensor | None = None

    @classmethod
    def of(cls, sight: Sight, query: Tensor) -> Columns:
        """For queries (B, H, T, D)."""
        intervals, _ = intervals_of(sight)
        exist, rank, B, wide = sight.exist, sight.rank, query.shape[0], at_least_float32(query.dtype)
        coordinate = intervals.coordinate[None].expand(B, -1)
        there, share, alone = [exist], None, None
        if sight.sinks is not None:
            position, found = sight.sinks
            far, near = coordinate[:, : intervals.summaries], coordinate[:, intervals.summaries + intervals.sinks :]
            coordinate = torch.cat([far, position.int().expand(B, -1), near], 1)
            there.insert(0, found)
        if rank and sight.spec.causal:
            count = sight.counts.repeat_interleave(rank, 1)
            there.insert(0, count > 0)
            others = intervals.kind.shape[0] - intervals.summaries
            share = F.pad(log_share(count, rank, sight.config.counted, 0.0, wide), (0, others))
        elif rank:
            count = _stand_for(sight)
            there.insert(0, exist.new_ones(exist.shape[0], rank))
            share, alone = log_share(count, rank, sight.config.counted, 0.0, wide), count == 0
        samples = max(part.shape[0] for part in there)
        each = torch.cat([part.expand(samples, -1) for part in there], 1)
        tables = [None if table is None else _of_each(table, B) for table in (share, alone)]
        return cls(intervals, _of_each(coordinate, B), _of_each(each, B), tables[0], tables[1])


def _of_each(table: Tensor, samples: int) -> Tensor:
    """(B or 1, n) to (B, n), in memory of its own."""
    return table.expand(samples, -1).contiguous()


def _stand_for(sight: Sight) -> Tensor:
    """(B or 1, T), for how many tokens the summaries of a whole sequence stand, by query."""
    T, tiling = sight.exist.shape[1], sight.tiling
    tiles = tiling.count(T)
    return sight.stand_for(0, tiles).expand(-1, tiles, tiling.length).flatten(1)[:, :T]


def mask_of(columns: Columns) -> Mask:
    """Which scores count, as a `mask_mod` of FlexAttention."""
    intervals, coordinate, there, _, alone = columns
    kind, lower, upper, outside = intervals.kind, intervals.lower, intervals.upper, intervals.outside
    summary = intervals.summary

    def seen(b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        which, place = kind[column], coordinate[b, column]
        inside = (place >= lower[which, q]) & (place < upper[which, q])
        return there[b, column] & (inside ^ outside[column])

    if alone is None:
        return seen

    def seen_or_stood_for(b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        return seen(b, h, q, column) & ~(summary[column] & alone[b, q])

    return seen_or_stood_for


def score_of(columns: Columns, softcap: float | None, added: Tensor | None) -> Score | None:
    """Softcap, then what is added to summaries, as a `score_mod` of FlexAttention; None to leave scores as they are.

    What it captures are tensors, since a number would become a symbol of the compiled graph.

    Args:
        columns: give the share of each summary.
        softcap: c in c * tanh(score / c), or None.
        added: (H,), added to the scores of summaries, or None.
    """
    share, by_query, summary = columns.share, columns.alone is not None, columns.intervals.summary
    cap = None if softcap is None else torch.tensor(softcap, dtype=torch.float32, device=summary.device)
    if added is not None:
        added = added.to(at_least_float32(added.dtype))
    if cap is None and share is None:
        return None

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        if cap is not None:
            value = cap * torch.tanh(value / cap)
        if share is None:
            return value
        plus = share[b, q if by_query else column]
        if added is not None:
            plus = plus + added[h]
        return torch.where(summary[column], value + plus, value)

    return score


def _block_mask(sight: Sight, mask: Mask) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    intervals, blocks = intervals_of(sight)
    lengths = (sight.exist.shape[1], intervals.kind.shape[0])
    return BlockMask.from_kv_blocks(blocks.many, blocks.order, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=lengths)


def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


def _compiled(*operands: Any, **options: Any) -> Tensor:
    """FlexAttention as one kernel. All its variants come from one function: more than are compiled by default."""
    with torch._dynamo.config.patch(recompile_limit=128):
        return _compile()(*operands, **options)


@functools.cache
def _compile() -> Callable[..., Tensor]:
    """Compiled at the first call, and for any length at the second; in one graph, or all scores would be made."""
    return torch.compile(_flex_attention(), fullgraph=True)
