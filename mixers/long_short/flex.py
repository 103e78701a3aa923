"""The Long-Short attention through FlexAttention: one fused kernel on GPUs, which skips what no query sees.

Every query scores the columns [summaries; sinks; unused; tokens] of its sequence, all samples' in their order; a block
mask says which blocks of 128 queries and 128 columns have to be looked at, and which of these as a whole; of the others
a mask says which scores count. What doesn't exist is a matter of scores. Nothing is copied into tiles: beside queries,
keys, values and the output there are (B, columns) tables of what exists, and those of the block mask, of (T / 128)^2
integers. Without a GPU, FlexAttention gives the same numbers by all scores.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.long_short.intervals import BLOCK, UNUSED, Intervals, Whole, intervals_of
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.summaries import log_share
from remixer.mixers.precision import at_least_float32

HEAD_SIZES = (16, 32, 64, 128, 256)
FEW_KINDS = 3
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


def mix_by_blocks(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, *, masked: bool
) -> Tensor:
    """The same numbers as `mix_at_once`, which explains the arguments, in one call of FlexAttention.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    attend = _compiled if query.device.type == "cuda" else _flex_attention()
    spec, whole, samples = sight.spec, Whole.of(sight), query.shape[0]
    columns = Columns.of(sight, samples, query.dtype) if masked else _all_there(whole, samples, query.dtype)
    key, value = (joined(tokens, columns.intervals.unused).to(query.dtype) for tokens in (keys, values))
    mixed = attend(
        query,
        key,
        value,
        score_mod=score_of(columns, spec.softcap, added),
        block_mask=_block_mask(whole, mask_of(columns)),
        scale=spec.scale,
        enable_gqa=spec.groups > 1,
    )
    return mixed.to(values.near.dtype)


def joined(tokens: Tokens, unused: int) -> Tensor:
    """Keys or values of all columns, (B, G, columns, D): summaries, sinks, so many zeros, tokens."""
    nothing = tokens.near[:, :, :1].new_zeros(()).expand(*tokens.near.shape[:2], unused, tokens.near.shape[3])
    parts = [part for part in (tokens.far, tokens.sinks, nothing, tokens.near) if part is not None and part.shape[2]]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


class Columns(NamedTuple):
    """What mask and scores look up.

    Attributes:
        intervals: what queries see if it exists.
        coordinate: (B, columns), of every sample.
        there: (B, columns) bool, which exist; or None if all do.
        share: (B, columns), added to the scores of causal summaries, else 0; or, bidirectional, (B, T), what each
            query adds to its scores of all summaries; or None.
        alone: (B, T) bool, queries for which summaries stand for nothing, or None.
    """

    intervals: Intervals
    coordinate: Tensor
    there: Tensor | None = None
    share: Tensor | None = None
    alone: Tensor | None = None

    @classmethod
    def of(cls, sight: Sight, samples: int, dtype: torch.dtype) -> Columns:
        """For so many samples, with queries of this dtype."""
        intervals, _ = intervals_of(sight)
        exist, rank, wide = sight.exist, sight.rank, at_least_float32(dtype)
        coordinate = intervals.coordinate[None].expand(samples, -1)
        there, share, alone = [exist.new_zeros(1, intervals.unused), exist], None, None
        if sight.sinks is not None:
            position, found = sight.sinks
            far, near = coordinate[:, : intervals.summaries], coordinate[:, intervals.summaries + intervals.sinks :]
            coordinate = torch.cat([far, position.int().expand(samples, -1), near], 1)
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
        most = max(part.shape[0] for part in there)
        each = torch.cat([part.expand(most, -1) for part in there], 1)
        tables = [None if table is None else _of_each(table, samples) for table in (each, share, alone)]
        return cls(intervals, _of_each(coordinate, samples), *tables)


@functools.lru_cache(maxsize=32)
def _all_there(whole: Whole, samples: int, dtype: torch.dtype) -> Columns:
    """Of a sequence without padding; kept between calls."""
    with torch.inference_mode(False):  # or no later call could keep them for its gradients
        columns = Columns.of(whole.sight(whole.sinks), samples, dtype)
    return columns if whole.sinks > whole.tokens else columns._replace(there=None)


def _of_each(table: Tensor, samples: int) -> Tensor:
    """(B or 1, n) to (B, n), in memory of its own."""
    return table.expand(samples, -1).contiguous()


def _stand_for(sight: Sight) -> Tensor:
    """(B or 1, T), for how many tokens the summaries of a whole sequence stand, by query."""
    T, tiling = sight.exist.shape[1], sight.tiling
    tiles = tiling.count(T)
    return sight.stand_for(0, tiles).expand(-1, tiles, tiling.length).flatten(1)[:, :T]


def mask_of(columns: Columns) -> Mask:
    """Which scores count of what exists, as a `mask_mod` of FlexAttention."""
    intervals, coordinate, _, _, alone = columns
    kind, summary = intervals.kind, intervals.summary
    inside = _inside(intervals)

    def seen(b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        return inside(kind[column], coordinate[b, column], q)

    if alone is None:
        return seen

    def seen_or_stood_for(b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        return seen(b, h, q, column) & ~(summary[column] & alone[b, q])

    return seen_or_stood_for


def _inside(intervals: Intervals) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Whether query q sees what has this kind and coordinate: by comparison with the ends of every kind.

    Where there are many kinds, the ends are looked up instead, for every score of a block.
    """
    if len(intervals.lower) > FEW_KINDS:  # levels of a memory, of which nothing is seen outside of an interval
        lower, upper = torch.stack(intervals.lower), torch.stack(intervals.upper)

        def looked_up(which: Tensor, place: Tensor, q: Tensor) -> Tensor:
            return (which >= 0) & (place >= lower[which, q]) & (place < upper[which, q])

        return looked_up
    ends = list(zip(intervals.lower, intervals.upper, intervals.outside, strict=True))

    def compared(which: Tensor, place: Tensor, q: Tensor) -> Tensor:
        found = which < UNUSED
        for each, (lower, upper, outside) in enumerate(ends):
            within = (place >= lower[q]) & (place < upper[q])
            found = found | ((which == each) & (~within if outside else within))
        return found

    return compared


def score_of(columns: Columns, softcap: float | None, added: Tensor | None) -> Score | None:
    """Softcap, what is added to summaries, and minus infinity for what doesn't exist, as a `score_mod`.

    What it captures are tensors, since a number would become a symbol of the compiled graph.

    Args:
        columns: give what exists, and the share of each summary.
        softcap: c in c * tanh(score / c), or None.
        added: (H,), added to the scores of summaries, or None.

    Returns:
        None to leave scores as they are.
    """
    there, share, by_query, summary = columns.there, columns.share, columns.alone is not None, columns.intervals.summary
    cap = None if softcap is None else torch.tensor(softcap, dtype=torch.float32, device=summary.device)
    if added is not None:
        added = added.to(at_least_float32(added.dtype))
    if cap is None and share is None and there is None:
        return None

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        if cap is not None:
            value = cap * torch.tanh(value / cap)
        if share is not None:
            plus = share[b, q if by_query else column]
            if added is not None:
                plus = plus + added[h]
            value = torch.where(summary[column], value + plus, value)
        return value if there is None else torch.where(there[b, column], value, -torch.inf)

    return score


def _block_mask(whole: Whole, mask: Mask) -> Any:
    block_mask = copy.copy(_blocks(whole))
    block_mask.mask_mod = mask
    return block_mask


@functools.lru_cache(maxsize=32)
def _blocks(whole: Whole) -> Any:
    """A BlockMask that lacks its mask; kept between calls."""
    from torch.nn.attention.flex_attention import BlockMask

    with torch.inference_mode(False):
        intervals, blocks = intervals_of(whole.sight(whole.sinks))
        lengths = (whole.tokens, len(intervals.kind))
        return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, seq_lengths=lengths)


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
