"""One softmax over several groups of columns in training on a CPU: each by the fused kernel, then merged.

What a tile of queries sees need not be copied side by side for that, nor need what all tiles share be copied for each.
The merging is that of Dao et al. (2022, "FlashAttention", section 3.1); given the whole's output and logarithm of sums,
the kernel's own gradient of a part is what the part contributes to the whole's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
FIRST_OPERAND = 3  # of _ByParts, behind query, added and scale


class Columns(NamedTuple):
    """Some of the columns that queries see.

    Attributes:
        key: (B, G, runs, columns, D), runs being the tiles, or a multiple of them: so many parts of each tile.
        value: (B, G, runs, columns, D).
        bias: (B or 1, G or 1, runs or 1, groups or 1, rows or 1, columns), added to the scores of the rows of a run.
    """

    key: Tensor
    value: Tensor
    bias: Tensor


def attention_by_parts(query: Tensor, parts: list[Columns], added: Tensor | None, scale: float) -> Tensor:
    """softmax(scale * query key^T + bias) value over the columns of all parts.

    Args:
        query: (B, G, tiles, groups, length, D), float32 or float64.
        parts: the columns.
        added: (H,), added to the scores of the last part, or None.
        scale: factor on the products.

    Returns:
        (B, G, tiles, groups, length, D).
    """
    operands = [tensor for part in parts for tensor in part]
    mixed: Tensor = _ByParts.apply(query, added, scale, *operands)
    return mixed


class _ByParts(torch.autograd.Function):
    """See `attention_by_parts`. What lies between has the layout (B, tiles, length, G, groups, ...)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, added: Tensor | None, scale: float, *operands: Tensor) -> Tensor:
        query = _by_entries(query)
        last = len(operands) // len(Columns._fields) - 1
        kept: list[Tensor] = []
        out = lse = query.new_zeros(())
        for number, part in enumerate(_parts(operands)):
            mixed, sums = aten._scaled_dot_product_flash_attention_for_cpu(
                _rows(query, part), *_columns(part), 0.0, False, attn_mask=_mask(part, query), scale=scale
            )
            mixed, sums = _in_tiles(mixed, query), _in_tiles(sums[..., None], query)
            if added is not None and number == last:
                sums = sums + _by_head(added, sums)
            if number == 0:
                out, lse = mixed, sums
                continue
            before, lse = lse, torch.logaddexp(lse, sums)
            share = torch.exp(sums - lse)
            if added is not None and number == last:
                kept = [mixed, share]
            out = out * torch.exp(before - lse) + mixed * share
        if last == 0 and added is not None:
            kept = [out, torch.ones_like(lse)]
        ctx.save_for_backward(query, out, lse, added, *kept, *operands)
        ctx.scale = scale
        return _tiles_first(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of query, added, and the keys and values of all parts."""
        grad = _by_entries(gradients[0])
        query, out, lse, added, *kept = ctx.saved_tensors
        of_added = None
        if added is not None:
            mixed, share, *operands = kept
            by_row = ((mixed - out) * grad.permute(0, 2, 4, 1, 3, 5)).sum(-1, keepdim=True) * share
            of_added = by_row.sum((0, 1, 2)).flatten().to(added.dtype)
        else:
            operands = kept
        of_query: Tensor | None = None
        of_operands: list[Tensor | None] = []
        parts, size = _parts(operands), len(Columns._fields)
        for number, part in enumerate(parts):
            if added is not None and number == len(parts) - 1:
                lse = lse - _by_head(added, lse)  # the kernel knows nothing of it
            of_part = slice(FIRST_OPERAND + number * size, FIRST_OPERAND + (number + 1) * size)
            if not ctx.needs_input_grad[0] and not any(ctx.needs_input_grad[of_part]):
                of_operands += [None] * size  # a window of keys that nobody trains
                continue
            of_rows, *of_columns = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(_rows(each, part) for each in (grad, query)),
                *_columns(part),
                _rows(_tiles_first(out), part),
                _rows(_tiles_first(lse), part)[..., 0],
                0.0,
                False,
                attn_mask=_mask(part, query),
                scale=ctx.scale,
            )
            of_rows = _in_tiles(of_rows, query)
            of_query = of_rows if of_query is None else of_query.add_(of_rows)
            of_operands += [each.unflatten(0, (query.shape[0], -1)).transpose(1, 2) for each in of_columns]
            of_operands.append(None)
        of_query = None if of_query is None else _tiles_first(of_query)
        return of_query, of_added, None, *of_operands


def _parts(operands: Any) -> list[Columns]:
    size = len(Columns._fields)
    return [Columns(*operands[start : start + size]) for start in range(0, len(operands), size)]


def _by_head(added: Tensor, sums: Tensor) -> Tensor:
    """(H,) to (G, groups, 1)."""
    return added.to(sums.dtype).view(*sums.shape[3:5], 1)


def _by_entries(tensor: Tensor) -> Tensor:
    """The kernel takes any strides but that of entries, which has to be 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _rows(tensor: Tensor, part: Columns) -> Tensor:
    """(B, G, tiles, groups, length, n) to (B runs, G, groups rows, n)."""
    runs = part.key.shape[2]
    B, G, tiles, groups, length, n = tensor.shape
    several = runs // tiles
    by_run = tensor.unflatten(4, (several, -1)).permute(0, 2, 4, 1, 3, 5, 6)
    return by_run.reshape(B * runs, G, groups * (length // several), n)


def _columns(part: Columns) -> tuple[Tensor, Tensor]:
    """Keys and values, (B runs, G, columns, D) each."""
    key, value = (_by_entries(each.transpose(1, 2).flatten(0, 1)) for each in (part.key, part.value))
    return key, value


def _mask(part: Columns, query: Tensor) -> Tensor:
    """(B runs or 1, G or 1, groups rows, columns)."""
    (B, _, tiles, groups, length, _), (samples, _, runs, *_) = query.shape, part.bias.shape
    rows = length // (part.key.shape[2] // tiles)
    one = samples == runs == 1
    sizes = (1 if one else B, -1, 1 if one else part.key.shape[2], groups, rows, -1)
    return part.bias.expand(*sizes).transpose(1, 2).flatten(3, 4).flatten(0, 1)


def _in_tiles(rows: Tensor, query: Tensor) -> Tensor:
    """(B runs, G, groups rows, n) to (B, tiles, length, G, groups, n)."""
    B, G, tiles, groups, length, _ = query.shape
    several = rows.shape[0] // (B * tiles)
    by_run = rows.view(B, tiles, several, G, groups, length // several, rows.shape[-1])
    return by_run.permute(0, 1, 2, 5, 3, 4, 6).flatten(2, 3)


def _tiles_first(tensor: Tensor) -> Tensor:
    """(B, tiles, length, G, groups, n) to (B, G, tiles, groups, length, n)."""
    return tensor.permute(0, 3, 1, 4, 2, 5)
