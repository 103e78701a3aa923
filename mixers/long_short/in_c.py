"""The Long-Short attention at inference on a CPU by compiled code, see attention.c: nothing is copied into tiles."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.c_library import library
from remixer.mixers.eager import plain_inference
from remixer.mixers.long_short.block_scores import Tables, tables_without_padding
from remixer.mixers.long_short.column_blocks import layout_of
from remixer.mixers.long_short.intervals import Interval, Intervals
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.whole import Whole, kept
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec

NUMBERS = {torch.float32: "float", torch.bfloat16: "float", torch.float64: "double"}  # what the code reckons with
MOST_KEPT = 2**16  # tokens of a sequence whose intervals are kept between calls
CLOSE = 1e-4  # how near to the definition the code has to come before it is used

_Pointer, _Number, _Strides = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 3


class _Group(ctypes.Structure):
    """`group` in attention.c."""

    _fields_ = (
        ("key", _Pointer),
        ("value", _Pointer),
        ("key_strides", _Strides),
        ("value_strides", _Strides),
        ("low", _Pointer),
        ("high", _Pointer),
        ("low_stride", _Number),
        ("high_stride", _Number),
        ("by_column", _Pointer),
        ("by_column_stride", _Number),
        ("by_query", _Pointer),
        ("by_query_stride", _Number),
        ("by_head", _Pointer),
    )


class _Call(ctypes.Structure):
    """`call` in attention.c."""

    _fields_ = (
        ("query", _Pointer),
        ("out", _Pointer),
        ("query_strides", _Strides),
        ("out_strides", _Strides),
        ("samples", _Number),
        ("heads", _Number),
        ("kv_heads", _Number),
        ("queries", _Number),
        ("size", _Number),
        ("value_size", _Number),
        ("scale", ctypes.c_double),
        ("bfloat16", _Number),
        ("threads", _Number),
        ("count", _Number),
        ("groups", ctypes.POINTER(_Group)),
    )


class Group(NamedTuple):
    """Some columns, and which of them each query sees.

    Attributes:
        key: (B, G, columns, D).
        value: (B, G, columns, E).
        low: (B or 1, T) int32, the first column that a query sees.
        high: (B or 1, T) int32, the one behind the last.
        by_column: (B or 1, columns), added to the scores, or None.
        by_query: (B or 1, T), added to the scores, or None.
        by_head: (H,), added to the scores, or None.
    """

    key: Tensor
    value: Tensor
    low: Tensor
    high: Tensor
    by_column: Tensor | None = None
    by_query: Tensor | None = None
    by_head: Tensor | None = None


def usable_in_c(
    query: Tensor, keys: Tokens, values: Tokens, spec: AttentionSpec, offsets: Tensor | None, dropout: float
) -> bool:
    """Whether these operands are mixed at inference on a CPU, in a form that the code takes, and there is the code."""
    plain = offsets is None and dropout == 0.0 and spec.softcap is None and query.dtype in NUMBERS
    tensors = [each for each in (query, *keys, *values) if each is not None]
    if not plain or len({each.dtype for each in tensors}) > 1 or not plain_inference(*tensors):
        return False
    return _proven(NUMBERS[query.dtype])


def mix_in_c(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, *, masked: bool
) -> Tensor:
    """The numbers of `mix_at_once`, which explains the arguments, without gradients or dropout.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    groups = list(_groups(query, keys, values, sight, added, masked))
    out = query.new_empty(*query.shape[:1], query.shape[2], query.shape[1], values.near.shape[3]).transpose(1, 2)
    attend(query, groups, sight.spec.scale, out)
    return out


def attend(query: Tensor, groups: list[Group], scale: float, out: Tensor) -> None:
    """One softmax over the columns of all groups.

    Args:
        query: (B, H, T, D) of a dtype in NUMBERS, which keys, values and out have too.
        groups: the columns.
        scale: factor on the products of queries and keys.
        out: (B, H, T, E), where the result goes; 0 for a query that sees nothing.

    Raises:
        MemoryError: there is none left.
        ValueError: entries of out don't lie next to each other.
    """
    if out.stride(-1) != 1 and out.shape[-1] > 1:
        raise ValueError(f"the entries of out must lie next to each other, got strides {out.stride()}")
    query = _by_entries(query)
    groups = [group._replace(key=_by_entries(group.key), value=_by_entries(group.value)) for group in groups]
    (B, H, T, D), (_, G, _, E) = query.shape, groups[0].value.shape
    call = _Call(
        query.data_ptr(),
        out.data_ptr(),
        _Strides(*query.stride()[:3]),
        _Strides(*out.stride()[:3]),
        *(B, H, G, T, D, E),
        scale,
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
        len(groups),
        (_Group * len(groups))(*(_described(group) for group in groups)),
    )
    code = _code(NUMBERS[query.dtype])
    assert code is not None
    if code(ctypes.byref(call)):
        raise MemoryError(f"no memory for the attention of {B} x {H} x {T} queries")


def _groups(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, masked: bool
) -> Iterator[Group]:
    """Summaries, level by level, sinks, and the window."""
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
            yield Group(key, value, low, high, by_column(first, stop - first), tables.by_query, by_head)
            first = stop
    if keys.sinks is not None and values.sinks is not None and sight.sinks is not None:
        of_sinks = by_column(layout.summaries, layout.sinks)
        for low, high in _sinks_in_sight(sight.sinks[0], ends.tiles, sight.spec.causal):
            yield Group(keys.sinks, values.sinks, low, high, of_sinks)
    low, high = ends.tokens
    yield Group(keys.near, values.near, low, high, by_column(layout.first, layout.tokens))


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


def _by_entries(tensor: Tensor) -> Tensor:
    """The code takes any strides but that of entries, which has to be 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _described(group: Group) -> _Group:
    ends = [_Strided.of(end) for end in (group.low, group.high)]
    by_column, by_query = (_Strided.of(each) for each in (group.by_column, group.by_query))
    return _Group(
        group.key.data_ptr(),
        group.value.data_ptr(),
        _Strides(*group.key.stride()[:3]),
        _Strides(*group.value.stride()[:3]),
        *(end.pointer for end in ends),
        *(end.stride for end in ends),
        *by_column,
        *by_query,
        None if group.by_head is None else group.by_head.data_ptr(),
    )


class _Strided(NamedTuple):
    """Where a (B or 1, n) table lies, and how far apart samples are."""

    pointer: int | None
    stride: int

    @classmethod
    def of(cls, table: Tensor | None) -> _Strided:
        if table is None:
            return cls(None, 0)
        assert table.stride(-1) == 1 or table.shape[-1] == 1
        return cls(table.data_ptr(), table.stride(0) if len(table) > 1 else 0)


@functools.cache
def _code(number: str) -> Callable[..., int] | None:
    """The code for numbers of a kind, or None if it can't be compiled here."""
    made = library(Path(__file__).with_name("attention.c"), REAL=number)
    if made is None:
        return None
    code: Callable[..., int] = made.attend
    return code


@functools.cache
def _proven(number: str) -> bool:
    """Whether there is the code, and it gives what it should; a warning tells if it doesn't."""
    if _code(number) is None:
        return False
    with torch.inference_mode(False), torch.no_grad():
        off = _far_off(torch.float64 if number == "double" else torch.float32)
    if off < CLOSE:
        return True
    warnings.warn(
        f"The compiled Long-Short attention is {off:.1e} off here and is not used: mixers are slower, and right. "
        "Another compiler may do better: name it in the environment variable CC",
        stacklevel=2,
    )
    return False


def _far_off(dtype: torch.dtype) -> float:
    """By how much the code misses an attention written out, over columns in two groups."""
    place = torch.arange(37, dtype=torch.int32)[None]
    query, key, value = (
        torch.arange(heads * length * 5, dtype=dtype).mul_(7.3 + heads).sin_().view(1, heads, length, 5)
        for heads, length in ((4, 37), (2, 50), (2, 49))
    )
    value = torch.cat([value, value[:, :, :1]], 2)
    near, far = (place.clamp(min=9) - 9, place + 1), (torch.zeros_like(place), place // 3)
    by_column, by_head = query[0, 0, :13, 0].contiguous()[None], query[0, :, 5, 1].contiguous()
    groups = [
        Group(key[:, :, 37:], value[:, :, 37:], *far, by_column, place.to(dtype) / 9, by_head),
        Group(key[:, :, :37], value[:, :, :37], *near),
    ]
    out = torch.empty_like(query)
    attend(query, groups, 0.7, out)
    scores = 0.7 * query @ key.repeat_interleave(2, 1).transpose(2, 3)
    more = by_column[:, None] + by_head[:, None, None] + (place.to(dtype) / 9)[..., None]
    scores[..., 37:] += more
    seen = torch.cat([_inside(low, high, n) for (low, high), n in ((near, 37), (far, 13))], -1)
    expected = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ value.repeat_interleave(2, 1)
    worst = (out - expected).abs().max()
    return float("inf") if worst.isnan() else float(worst)


def _inside(low: Tensor, high: Tensor, columns: int) -> Tensor:
    column = torch.arange(columns)
    return (column >= low[..., None]) & (column < high[..., None])
