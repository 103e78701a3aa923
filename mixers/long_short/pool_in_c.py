"""Pooling at inference on a CPU by compiled code: of segments see pooling.c; of a whole sequence it is an attention."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from remixer.mixers.c_library import NUMBERS, Compiled, Number, Pointer, Strides, by_entries, worst
from remixer.mixers.eager import plain_inference, unwatched
from remixer.mixers.long_short.compiled_attention import ATTENTION, Group, attend
from remixer.mixers.precision import at_least_float32

LONGEST = 2**16  # tokens that are summed in a row: more would lose digits
TASKS = 4  # as many for each thread, that none waits for another


class _Call(ctypes.Structure):
    """`call` in pooling.c."""

    _fields_ = (
        *((name, Pointer) for name in ("logits", "exist", "key", "value", "far_key", "far_value", "mass")),
        *((name, Strides) for name in ("key_strides", "value_strides")),
        *((name, Number) for name in ("samples", "heads", "rank", "tokens", "segment", "size", "value_size")),
        *((name, Number) for name in ("bfloat16", "threads")),
    )


def poolable_in_c(*operands: Tensor) -> bool:
    """Whether W_P, what it reads, keys and values are pooled at inference on a CPU, and there is the code for it."""
    dtype = operands[0].dtype
    same = dtype in NUMBERS and all(each.dtype == dtype for each in operands)
    return same and plain_inference(*operands) and unwatched() and ATTENTION.proven(dtype) and POOLING.proven(dtype)


def pool_segments_in_c(
    logits: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, segment: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of all segments, and the logarithms of what each softmax was divided by.

    Args:
        logits: (B, G, rank, S), at least float32.
        key: (B, G, S, D), of a dtype in NUMBERS.
        value: (B, G, S, E), of the same.
        padding: (B, S) bool, or None.
        segment: tokens of a segment.

    Returns:
        (B, G, segments, rank, D), (B, G, segments, rank, E) and (B, G, segments, rank).

    Raises:
        MemoryError: there is none left.
    """
    (B, G, rank, S), D, E = logits.shape, key.shape[3], value.shape[3]
    logits = logits.to(at_least_float32(key.dtype)).contiguous()
    key, value = by_entries(key), by_entries(value)
    exist = None if padding is None else padding.expand(B, S).contiguous()
    segments = -(-S // segment)
    far_key, far_value = (key.new_empty(B, G, segments, rank, size) for size in (D, E))
    mass = logits.new_empty(B, G, segments, rank)
    call = _Call(
        logits.data_ptr(),
        None if exist is None else exist.data_ptr(),
        *(each.data_ptr() for each in (key, value, far_key, far_value, mass)),
        *(Strides(*each.stride()[:3]) for each in (key, value)),
        *(B, G, rank, S, segment, D, E),
        key.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    POOLING(key.dtype, call)
    return far_key, far_value, mass


def pool_whole_in_c(
    pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`pool` without segments: an attention whose queries are the columns of W_P, of parts that are then merged.

    Returns:
        (B, G, rank, D) and (B, G, rank, E).
    """
    masks: Sequence[Tensor | None] = [None] * len(key) if padding is None else list(padding.expand(len(key), -1))
    far = [_of_sample(pooling, *each) for each in zip(reads, key, value, masks, strict=True)]
    return torch.stack([pair[0] for pair in far]), torch.stack([pair[1] for pair in far])


def _of_sample(
    pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of (G, S, ...) tokens, (G, rank, D) and (G, rank, E)."""
    G, S, _ = key.shape
    wanted = max(-(-S // LONGEST), min(-(-TASKS * torch.get_num_threads() // G), S // 256), 1)
    size = -(-S // wanted)
    whole, found = S // size * size, []
    for run, length in ((slice(whole), size), (slice(whole, S), S - whole)):
        if length:
            read, some_keys, some_values = (
                each[:, run].unflatten(1, (-1, length)).transpose(0, 1) for each in (reads, key, value)
            )
            there = None if padding is None else padding[run].view(-1, length)
            found.append(_of_parts(pooling, read, some_keys, some_values, there))
    far_key, far_value, logarithms = (torch.cat(each) for each in zip(*found, strict=True))
    if len(logarithms) == 1:
        return far_key[0], far_value[0]
    largest = logarithms.amax(0).clamp(min=torch.finfo(logarithms.dtype).min)
    weights = (logarithms - largest).exp_()
    weights /= weights.sum(0).clamp(min=torch.finfo(weights.dtype).tiny)
    merged = ((each * weights[..., None]).sum(0).to(key.dtype) for each in (far_key, far_value))
    return next(merged), next(merged)


def _of_parts(
    pooling: Tensor, reads: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of (parts, G, length, ...) tokens, what each part gives, and the logarithms of its sums, (parts, G, rank)."""
    parts, G, length, _ = key.shape
    query = pooling.transpose(1, 2).contiguous().expand(parts, -1, -1, -1)
    wide, rank = at_least_float32(key.dtype), query.shape[2]
    by_column = None if padding is None else torch.zeros_like(padding, dtype=wide).masked_fill_(~padding, -torch.inf)
    low = torch.zeros(1, rank, dtype=torch.int32)
    logarithms = torch.empty(parts, G, rank, dtype=wide)
    reads = reads.expand(-1, G, -1, -1)
    far_key, far_value = (key.new_empty(parts, G, rank, each.shape[3]) for each in (key, value))
    tokens = Group(reads, key, low, low + length, by_column, more=value)
    attend(query, [tokens], 1.0, far_key, logarithms, far_value)
    return far_key, far_value, logarithms


def _far_off(dtype: torch.dtype) -> float:
    """By how much the code misses the softmax of two segments written out."""
    logits, value = (torch.arange(rows * 18, dtype=dtype).mul_(7.3).sin_().view(1, 1, rows, 18) for rows in (2, 5))
    far_key, far_value, mass = pool_segments_in_c(logits, value.mT, value.mT, None, 9)
    of_segments = logits.unflatten(3, (2, 9)).transpose(2, 3)
    expected = torch.softmax(of_segments, -1) @ value.mT.unflatten(2, (2, 9))
    return worst([far_key, far_value, mass], [expected, expected, of_segments.logsumexp(-1)])


POOLING = Compiled(Path(__file__).with_name("pooling.c"), "pool", "pooling", _far_off)
