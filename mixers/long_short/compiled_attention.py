"""The attention of attention.c, called: one softmax over several groups of columns, each an interval to a query."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.mixers.c_library import Compiled, Number, Pointer, Strides, by_entries, pointer, worst


class _Group(ctypes.Structure):
    """`group` in attention.h."""

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
        ("of_key", Pointer),
        ("of_value", Pointer),
        ("of_key_strides", ctypes.c_int64 * 4),
        ("of_value_strides", ctypes.c_int64 * 4),
        ("of_scores", Pointer),
    )


class _Call(ctypes.Structure):
    """`call` in attention.h."""

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
        ("above", Pointer),
        ("delta", Pointer),
        ("of_query", Pointer),
        ("above_strides", Strides),
        ("parts", Number),
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
        of_key: (parts, B, G, columns, D), to which the gradients of keys are added, or None.
        of_value: (parts, B, G, columns, E), likewise of values.
        of_scores: (B, H, T), likewise those of scores, summed over the columns.
    """

    key: Tensor
    value: Tensor
    low: Tensor
    high: Tensor
    by_column: Tensor | None = None
    by_query: Tensor | None = None
    by_head: Tensor | None = None
    of_key: Tensor | None = None
    of_value: Tensor | None = None
    of_scores: Tensor | None = None


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
    query, groups = by_entries(query), [_by_entries(group) for group in groups]
    call = _call(query, groups, scale, out=pointer(out), logarithms=pointer(logarithms))
    call.out_strides = Strides(*out.stride()[:3])
    ATTENTION(query.dtype, call)


def attend_backward(
    query: Tensor,
    groups: list[Group],
    scale: float,
    logarithms: Tensor,
    above: Tensor,
    delta: Tensor,
    of_query: Tensor | None,
) -> None:
    """The gradients of `attend`: added to those that groups ask for.

    Args:
        query: see `attend`; not bfloat16.
        groups: the columns, and what is asked of them; `parts` of each sequence have gradients of their own.
        scale: see `attend`.
        logarithms: (B, H, T), that `attend` gave.
        above: (B, H, T, E), the gradient of what it gave.
        delta: (B, H, T), contiguous, the products of the two.
        of_query: (B, H, T, D), contiguous, where the gradient of the query goes, or None.

    Raises:
        MemoryError: there is none left.
    """
    query, above, groups = by_entries(query), by_entries(above), [_by_entries(group) for group in groups]
    call = _call(query, groups, scale, logarithms=pointer(logarithms), delta=pointer(delta), above=pointer(above))
    call.above_strides, call.of_query = Strides(*above.stride()[:3]), pointer(of_query)
    call.parts = max((len(group.of_key) for group in groups if group.of_key is not None), default=1)
    GRADIENTS(query.dtype, call)


def _call(query: Tensor, groups: list[Group], scale: float, **pointers: int | None) -> _Call:
    (B, H, T, D), (_, G, _, E) = query.shape, groups[0].value.shape
    return _Call(
        query=query.data_ptr(),
        query_strides=Strides(*query.stride()[:3]),
        **dict(zip(("samples", "heads", "kv_heads", "queries", "size", "value_size"), (B, H, G, T, D, E), strict=True)),
        scale=scale,
        bfloat16=query.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        count=len(groups),
        groups=(_Group * len(groups))(*(_described(group) for group in groups)),
        **pointers,
    )


def _by_entries(group: Group) -> Group:
    return group._replace(key=by_entries(group.key), value=by_entries(group.value))


def _described(group: Group) -> _Group:
    ends = [_Strided.of(end) for end in (group.low, group.high)]
    by_column, by_query = (_Strided.of(each) for each in (group.by_column, group.by_query))
    gradients = group.of_key, group.of_value
    return _Group(
        group.key.data_ptr(),
        group.value.data_ptr(),
        Strides(*group.key.stride()[:3]),
        Strides(*group.value.stride()[:3]),
        *(end.pointer for end in ends),
        *(end.stride for end in ends),
        *by_column,
        *by_query,
        *(pointer(each) for each in (group.by_head, *gradients)),
        *((ctypes.c_int64 * 4)(*(() if each is None else each.stride()[:4])) for each in gradients),
        pointer(group.of_scores),
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


def _far_off(dtype: torch.dtype, *, gradients: bool = False) -> float:
    """By how much the code misses an attention written out, over columns in two groups, or its gradients."""
    place = torch.arange(37, dtype=torch.int32)[None]
    query, key, value, above = (
        torch.arange(heads * length * 5, dtype=dtype).mul_(7.3 + start).sin_().view(1, heads, length, 5)
        for start, (heads, length) in enumerate(((4, 37), (2, 50), (2, 50), (4, 37)))
    )
    near, far = (place.clamp(min=9) - 9, place + 1), (torch.zeros_like(place), place // 3)
    by = query[0, 0, :13, 0].contiguous()[None], place.to(dtype) / 9, query[0, :, 5, 1].contiguous()
    of_key, of_value = (torch.zeros(1, *each.shape, dtype=dtype) for each in (key, value))
    groups = [
        Group(key[:, :, 37:], value[:, :, 37:], *far, *by, of_key[..., 37:, :], of_value[..., 37:, :]),
        Group(key[:, :, :37], value[:, :, :37], *near, of_key=of_key[..., :37, :], of_value=of_value[..., :37, :]),
    ]
    mixed, of_query, logarithms = torch.empty_like(query), torch.empty_like(query), torch.empty_like(query[..., 0])
    attend(query, groups, 0.7, mixed, logarithms)
    operands = [each.clone().requires_grad_(gradients) for each in (query, key, value)]
    with torch.enable_grad():
        wide_key, wide_value = (each.repeat_interleave(2, 1) for each in operands[1:])
        by_column, by_query, by_head = by
        bias = torch.cat([torch.zeros(4, 37, 37, dtype=dtype), by_column + by_head[:, None, None] + by_query.mT], -1)
        seen = torch.cat([_inside(low, high, n) for (low, high), n in ((near, 37), (far, 13))], -1)
        scores = 0.7 * operands[0] @ wide_key.mT + bias
        expected = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ wide_value
    if not gradients:
        return worst([mixed], [expected])
    attend_backward(query, groups, 0.7, logarithms, above, (above * mixed).sum(-1), of_query)
    return worst([of_query, of_key[0], of_value[0]], torch.autograd.grad(expected, operands, above))


def _inside(low: Tensor, high: Tensor, columns: int) -> Tensor:
    column = torch.arange(columns)
    return (column >= low[..., None]) & (column < high[..., None])


HERE = Path(__file__)
ATTENTION = Compiled(HERE.with_name("attention.c"), "attend", "attention", _far_off)
GRADIENTS = Compiled(
    HERE.with_name("attention_gradients.c"),
    "attend_backward",
    "gradient of attention",
    functools.partial(_far_off, gradients=True),
)
