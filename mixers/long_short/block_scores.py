"""Which scores of the Long-Short attention count, and what is added to them, as FlexAttention asks for it.

A kernel computes both for every score, so they are arithmetic on the numbers of query and column wherever that can be:
tables that are read by column made a kernel 20 times slower. What a query adds is read once for a row of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.long_short.column_blocks import layout_of
from remixer.mixers.long_short.sight import Sight, covers
from remixer.mixers.long_short.summaries import log_share
from remixer.mixers.long_short.whole import Whole, kept
from remixer.mixers.precision import at_least_float32

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Place = int | Tensor


class Tables(NamedTuple):
    """What can't be computed from the numbers of a query and a column.

    Attributes:
        by_query: (B or 1, T), what each query adds to its scores of all summaries, or None.
        by_column: (B, columns), what is added to the scores of each column, minus infinity if it doesn't exist; or
            None if all exist and nothing is added.
        positions: (B, sinks) int32, where the sinks stand, or None if they are the first tokens.
    """

    by_query: Tensor | None = None
    by_column: Tensor | None = None
    positions: Tensor | None = None

    @classmethod
    def of(cls, sight: Sight, samples: int, dtype: torch.dtype) -> Tables:
        """For so many samples, in which some tokens may not exist, with queries of this dtype."""
        layout, exist, wide = layout_of(Whole.of(sight)), sight.exist, at_least_float32(dtype)
        nothing = torch.zeros(1, layout.columns, dtype=wide, device=exist.device)
        by_query, positions, parts = None, None, [nothing[:, : layout.unused], _absent(exist, wide)]
        if sight.sinks is not None:
            parts.insert(0, _absent(sight.sinks[1], wide))
            positions = _of_each(sight.sinks[0].int(), samples)
        if sight.rank and sight.spec.causal:
            count = sight.counts.repeat_interleave(sight.rank, 1)
            parts.insert(0, log_share(count, sight.rank, sight.config.counted, -torch.inf, wide))
        elif sight.rank:
            by_query = sight.share(_stand_for(sight), -torch.inf, wide)
            parts.insert(0, nothing[:, : sight.rank])
        most = max(part.shape[0] for part in parts)
        by_column = torch.cat([part.expand(most, -1) for part in parts], 1)
        return cls(by_query, _of_each(by_column, samples), positions)


@kept
def tables_without_padding(whole: Whole, samples: int, dtype: torch.dtype) -> Tables:
    """As `Tables.of`, where all tokens exist; kept between calls."""
    if whole.sinks > whole.tokens:
        return Tables.of(whole.sight(), samples, dtype)
    counted, layout = whole.config.counted, layout_of(whole)
    if not whole.rank or not counted:
        return Tables()
    wide, sight = at_least_float32(dtype), whole.sight()
    if not whole.spec.causal:
        return Tables(sight.share(_stand_for(sight), -torch.inf, wide))
    if len(layout.ends) == 1:  # only whole segments are seen
        each = torch.full((1, whole.tokens), whole.config.segment, device=whole.device)
        return Tables(log_share(each, whole.rank, counted, 0.0, wide))
    share = log_share(sight.counts.repeat_interleave(whole.rank, 1), whole.rank, counted, 0.0, wide)
    return Tables(by_column=_of_each(F.pad(share, (0, layout.columns - layout.summaries)), samples))


def mask_of(whole: Whole, positions: Tensor | None = None) -> Mask:
    """Which scores count of what exists, as a `mask_mod`.

    Args:
        whole: what is seen.
        positions: see `Tables`.
    """
    (left, right), causal = whole.spec.window, whole.spec.causal
    window, sinks = whole.config.window, whole.sinks
    _, far, first = _places(whole)
    everything, tiling = not causal and covers(window, whole.tokens), whole.without_sinks().tiling
    early = -(-window // whole.align) * whole.align  # divided numbers aren't negative
    summaries = _summaries_of(whole)

    def seen(b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        place = column - first
        if causal:
            start = (q - (window - 1 - early)) // whole.align * whole.align - early
            found = (place >= start) & (place <= q)
        else:
            start = q // window * window - tiling.before
            found = (place >= start) & (place < start + tiling.span)
        if everything:
            found = (place >= 0) & (q >= 0)
        if left is not None:
            found = found & (q - place <= left)
        if right is not None and not causal:
            found = found & (place - q <= right)
        found = found & (place >= 0)
        if sinks:
            which = column - far
            stands = which if positions is None else positions[b, which.clamp(0, sinks - 1)]
            beyond = stands < start
            if not causal:
                beyond = beyond | (stands >= start + tiling.span)
            found = found | (beyond & (which >= 0) & (which < sinks))
        return found if summaries is None else found | summaries(start, column)

    return seen


def _summaries_of(whole: Whole) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Which summaries a query sees whose window starts there."""
    if not whole.rank:
        return None
    ends, far, _ = _places(whole)
    if not whole.spec.causal:
        return lambda start, column: column < far
    memory, segment, rank = whole.without_sinks().memory, whole.config.segment, whole.rank
    early = -(-whole.config.window // segment) * segment

    def seen(start: Tensor, column: Tensor) -> Tensor:
        found: Tensor = column < 0
        first: Place = 0
        intervals = memory.visible((start + early) // segment - early // segment)
        for end, (low, high) in zip(ends, intervals, strict=True):
            node = column - first
            inside = (node >= low * rank) & (node < high * rank) & (column >= first) & (column < end)
            found, first = found | inside, end
        return found

    return seen


@kept
def _places(whole: Whole) -> tuple[tuple[Place, ...], Place, Place]:
    """Behind each level of summaries, behind all, and where the tokens begin; tensors if that goes by the length.

    A number would be a constant of the compiled kernel, which is to serve all lengths.
    """
    layout = layout_of(whole)
    if not whole.spec.causal or not whole.rank:
        return layout.ends, layout.summaries, layout.first
    ends = tuple(torch.tensor(end, dtype=torch.int32, device=whole.device) for end in layout.ends)
    return ends, ends[-1], torch.tensor(layout.first, dtype=torch.int32, device=whole.device)


def score_of(whole: Whole, tables: Tables, added: Tensor | None, samples: int) -> Score | None:
    """Softcap, then what is added, as a `score_mod`; None to leave scores as they are.

    Args:
        whole: what is seen.
        tables: what is added, by query and by column.
        added: (H,), added to the scores of summaries, or None.
        samples: B.
    """
    _, far, _ = _places(whole)
    softcap, by_column, plus = whole.spec.softcap, tables.by_column, _by_head(whole, tables, added, samples)
    cap = None if softcap is None else torch.tensor(softcap, dtype=torch.float32, device=whole.device)
    if cap is None and by_column is None and plus is None:
        return None

    def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, column: Tensor) -> Tensor:
        if cap is not None:
            value = cap * torch.tanh(value / cap)
        if plus is not None:
            value = torch.where(column < far, value + plus[b, h, q], value)
        return value if by_column is None else value + by_column[b, column]

    return score


def _by_head(whole: Whole, tables: Tables, added: Tensor | None, samples: int) -> Tensor | None:
    """(B, H, T), what each query adds to its scores of summaries: by head too, or gradients would meet in one place."""
    if added is None and tables.by_query is None:
        return None
    shape = (samples, whole.spec.heads, whole.tokens)
    by_query = 0.0 if tables.by_query is None else tables.by_query[:, None]
    by_head = 0.0 if added is None else added.to(at_least_float32(added.dtype))[:, None]
    plus = by_query + by_head
    assert isinstance(plus, Tensor)
    return plus.expand(shape).contiguous()


def _of_each(table: Tensor, samples: int) -> Tensor:
    """(B or 1, n) to (B, n), in memory of its own."""
    return table.expand(samples, -1).contiguous()


def _absent(exist: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for what exists, else minus infinity."""
    return torch.zeros_like(exist, dtype=dtype).masked_fill(~exist, -torch.inf)


def _stand_for(sight: Sight) -> Tensor:
    """(B or 1, T), for how many tokens the summaries of a whole sequence stand, by query."""
    T, tiling = sight.exist.shape[1], sight.tiling
    tiles = tiling.count(T)
    return sight.stand_for(0, tiles).expand(-1, tiles, tiling.length).flatten(1)[:, :T]
