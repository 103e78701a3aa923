"""The attention of attention.c, called: one softmax over several groups of columns, each an interval to a query."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.c_library import Function, function, trusted

NUMBERS = {torch.float32: "float", torch.bfloat16: "float", torch.float64: "double"}  # what the code reckons with

Pointer, Number, Strides = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 3


class _Group(ctypes.Structure):
    """`group` in attention.c."""

    _fields_ = (
        ("key", Pointer),
        ("value", Pointer),
        ("key_strides", Strides),
        ("value_strides", Strides),
        ("low", Pointer),
        ("high", Pointer),
        ("low_stride", Number),
        ("high_stride", Number),
        ("by_column", Pointer),
        ("by_column_stride", Number),
        ("by_query", Pointer),
        ("by_query_stride", Number),
        ("by_head", Pointer),
    )


class _Call(ctypes.Structure):
    """`call` in attention.c."""

    _fields_ = (
        ("query", Pointer),
        ("out", Pointer),
        ("logarithms", Pointer),
        ("query_strides", Strides),
        ("out_strides", Strides),
        ("samples", Number),
        ("heads", Number),
        ("kv_heads", Number),
        ("queries", Number),
        ("size", Number),
        ("value_size", Number),
        ("scale", ctypes.c_double),
        ("bfloat16", Number),
        ("threads", Number),
        ("count", Number),
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


def attend(query: Tensor, groups: list[Group], scale: float, out: Tensor, logarithms: Tensor | None = None) -> None:
    """One softmax over the columns of all groups.

    Args:
        query: (B, H, T, D) of a dtype in NUMBERS, which keys, values and out have too.
        groups: the columns.
        scale: factor on the products of queries and keys.
        out: (B, H, T, E), where the result goes; 0 for a query that sees nothing.
        logarithms: (B, H, T), contiguous and at least float32, where the logarithms of the sums go, or None.

    Raises:
        MemoryError: there is none left.
        ValueError: entries of out don't lie next to each other.
    """
    if out.stride(-1) != 1 and out.shape[-1] > 1:
        raise ValueError(f"the entries of out must lie next to each other, got strides {out.stride()}")
    query = by_entries(query)
    groups = [group._replace(key=by_entries(group.key), value=by_entries(group.value)) for group in groups]
    (B, H, T, D), (_, G, _, E) = query.shape, groups[0].value.shape
    call = _Call(
        query.data_ptr(),
        out.data_ptr(),
        None if logarithms is None else logarithms.data_ptr(),
        Strides(*query.stride()[:3]),
        Strides(*out.stride()[:3]),
        *(B, H, G, T, D, E),
        scale,
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
        len(groups),
        (_Group * len(groups))(*(_described(group) for group in groups)),
    )
    code = code_for(NUMBERS[query.dtype])
    assert code is not None
    if code(ctypes.byref(call)):
        raise MemoryError(f"no memory for the attention of {B} x {H} x {T} queries")


def by_entries(tensor: Tensor) -> Tensor:
    """The code takes any strides but that of entries, which has to be 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _described(group: Group) -> _Group:
    ends = [_Strided.of(end) for end in (group.low, group.high)]
    by_column, by_query = (_Strided.of(each) for each in (group.by_column, group.by_query))
    return _Group(
        group.key.data_ptr(),
        group.value.data_ptr(),
        Strides(*group.key.stride()[:3]),
        Strides(*group.value.stride()[:3]),
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


def code_for(number: str) -> Function | None:
    """The code for numbers of a kind, or None if it can't be compiled here."""
    return function(Path(__file__).with_name("attention.c"), "attend", REAL=number)


@functools.cache
def proven(number: str) -> bool:
    """Whether there is the code, and it gives what it should; a warning tells if it doesn't."""
    if code_for(number) is None:
        return False
    with torch.inference_mode(False), torch.no_grad():
        return trusted("attention", _far_off(torch.float64 if number == "double" else torch.float32))


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
