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
        ("values", Pointer * 2),
        ("key_strides", Strides),
        ("value_strides", Strides * 2),
        ("low", Pointer),
        ("high", Pointer),
        ("low_stride", Number),
        ("high_stride", Number),
        ("columns", Number),
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
        ("outs", Pointer * 2),
        ("logarithms", Pointer),
        ("query_strides", Strides),
        ("out_strides", Strides * 2),
        ("samples", Number),
        ("heads", Number),
        ("kv_heads", Number),
        ("queries", Number),
        ("size", Number),
        ("value_sizes", Number * 2),
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
        more: (B, G, columns, F), mixed by the same weights to a result of its own, or None; it has no gradients.
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
    more: Tensor | None = None


def attend(
    query: Tensor,
    groups: list[Group],
    scale: float,
    out: Tensor,
    logarithms: Tensor | None = None,
    more: Tensor | None = None,
) -> None:
    """One softmax over the columns of all groups.

    Args:
        query: (B, H, T, D) of a dtype in NUMBERS, which keys, values and out have too.
        groups: the columns.
        scale: factor on the products of queries and keys.
        out: (B, H, T, E), where the result goes; 0 for a query that sees nothing.
        logarithms: (B, H, T), contiguous and at least float32, where the logarithms of the sums go, or None.
        more: (B, H, T, F), where what was mixed of `more` of the groups goes, or None.

    Raises:
        MemoryError: there is none left.
        ValueError: entries of out or more don't lie next to each other, or a group has none of what `more` is for.
    """
    outs = [out] if more is None else [out, more]
    if more is not None and any(group.more is None for group in groups):
        raise ValueError("there is a place for more values, and a group has none")
    for each in outs:
        if each.stride(-1) != 1 and each.shape[-1] > 1:
            raise ValueError(f"the entries of out must lie next to each other, got strides {each.stride()}")
    query, groups = by_entries(query), [_by_entries(group) for group in groups]
    call = _call(query, groups, scale, logarithms=pointer(logarithms))
    for n, each in enumerate(outs):
        call.outs[n], call.out_strides[n], call.value_sizes[n] = each.data_ptr(), _strides(each), each.shape[3]
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
    call.above_strides, call.of_query, call.value_sizes[0] = _strides(above), pointer(of_query), above.shape[3]
    call.parts = max((len(group.of_key) for group in groups if group.of_key is not None), default=1)
    GRADIENTS(query.dtype, call)


def _strides(tensor: Tensor) -> ctypes.Array[ctypes.c_int64]:
    return Strides(*tensor.stride()[:3])


def _call(query: Tensor, groups: list[Group], scale: float, **pointers: int | None) -> _Call:
    (B, H, T, D), G = query.shape, groups[0].key.shape[1]
    return _Call(
        query=query.data_ptr(),
        query_strides=_strides(query),
        **dict(zip(("samples", "heads", "kv_heads", "queries", "size"), (B, H, G, T, D), strict=True)),
        scale=scale,
        bfloat16=query.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        count=len(groups),
        groups=(_Group * len(groups))(*(_described(group) for group in groups)),
        **pointers,
    )


def _by_entries(group: Group) -> Group:
    more = None if group.more is None else by_entries(group.more)
    return group._replace(key=by_entries(group.key), value=by_entries(group.value), more=more)


def _described(group: Group) -> _Group:
    ends = [_Strided.of(end) for end in (group.low, group.high)]
    by_column, by_query = (_Strided.of(each) for each in (group.by_column, group.by_query))
    gradients = group.of_key, group.of_value
    values = [group.value] if group.more is None else [group.value, group.more]
    return _Group(
        group.key.data_ptr(),
        (Pointer * 2)(*(each.data_ptr() for each in values)),
        _strides(group.key),
        (Strides * 2)(*(_strides(each) for each in values)),
        *(end.pointer for end in ends),
        *(end.stride for end in ends),
        group.key.shape[2],
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
    parts = (slice(37, None), far, by), (slice(37), near, ())
    groups = [
        Group(key[:, :, part], value[:, :, part], *ends, *added)._replace(
            of_key=of_key[..., part, :], of_value=of_value[..., part, :], more=key[:, :, part]
        )
        for part, ends, added in parts
    ]
    mixed, more, of_query, logarithms = (*(torch.empty_like(query) for _ in range(3)), torch.empty_like(query[..., 0]))
    attend(query, groups, 0.7, mixed, logarithms, more)
    operands = [each.clone().requires_grad_(gradients) for each in (query, key, value)]
    with torch.enable_grad():
        wide_key, wide_value = (each.repeat_interleave(2, 1) for each in operands[1:])
        by_column, by_query, by_head = by
        bias = torch.cat([torch.zeros(4, 37, 37, dtype=dtype), by_column + by_head[:, None, None] + by_query.mT], -1)
        seen = torch.cat([_inside(low, high, n) for (low, high), n in ((near, 37), (far, 13))], -1)
        scores = 0.7 * operands[0] @ wide_key.mT + bias
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
        expected = weights @ wide_value
    if not gradients:
        return worst([mixed, more], [expected, weights @ wide_key])
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
