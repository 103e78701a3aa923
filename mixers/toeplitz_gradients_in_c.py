"""The Toeplitz product in training on a CPU by compiled code, see convolution_gradients.c."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.c_library import Compiled, Number, Pointer, Strides, by_entries, worst
from remixer.mixers.convolution import gradients_by_autograd, toeplitz_reference
from remixer.mixers.convolution_in_c import TransformFields, length_in_c, transform_of
from remixer.mixers.eager import plain, unwatched
from remixer.mixers.workspace import empty_like_tokens

PRODUCT, OF_VALUES, OF_COEFFICIENTS = range(3)


class _Sequences(ctypes.Structure):
    """`sequences` in convolution_gradients.c."""

    _fields_ = (("at", Pointer), ("strides", Strides), ("rows", Number))


class _Call(ctypes.Structure):
    """`call` in convolution_gradients.c."""

    _fields_ = (
        *((name, _Sequences) for name in ("coefficients", "values", "above", "result")),
        ("transform", TransformFields),
        *((name, Number) for name in ("samples", "value_heads", "heads", "channels", "first", "what", "threads")),
    )


def trainable_in_c(coefficients: Tensor, values: Tensor) -> bool:
    """Whether the code takes these, there is the code, and work for all threads: it shares out whole heads."""
    (H, C, _), E, dtype = coefficients.shape, values.shape[3], values.dtype
    if C != E or coefficients.dtype != dtype or dtype not in (torch.float32, torch.float64):
        return False
    busy = min(H, values.shape[1]) >= torch.get_num_threads()
    return busy and plain(coefficients, values) and unwatched() and PRODUCT_IN_TRAINING.proven(dtype)


class CompiledProduct(torch.autograd.Function):
    """`product_in_training` where `trainable_in_c`."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, values: Tensor, causal: bool) -> Tensor:
        """Laid out in memory as (B, T, H, E)."""
        by_offset = coefficients.transpose(1, 2).contiguous()
        out = empty_like_tokens(values, coefficients.shape[0], values.shape[3])
        _call(PRODUCT, by_offset, values, out, out, causal)
        ctx.save_for_backward(coefficients, by_offset, values)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients of coefficients and values."""
        (above,) = gradients
        coefficients, by_offset, values = ctx.saved_tensors
        if torch.is_grad_enabled():  # these gradients will be differentiated themselves
            return *gradients_by_autograd(coefficients, values, ctx.causal, above), None
        of_coefficients, of_values = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else None
            for tensor, needed in zip((by_offset, values), ctx.needs_input_grad, strict=False)
        )
        if of_values is not None:
            _call(OF_VALUES, by_offset, values, above, of_values, ctx.causal)
        if of_coefficients is not None:
            _call(OF_COEFFICIENTS, by_offset, values, above, of_coefficients[None], ctx.causal)
            of_coefficients = of_coefficients.transpose(1, 2).contiguous()  # as what they are multiplied with lies
        return of_coefficients, of_values, None


def _call(what: int, by_offset: Tensor, values: Tensor, above: Tensor, result: Tensor, causal: bool) -> None:
    """Fill the result: (B, H, T, E), (B, G, T, E) or (1, H, offsets, E).

    Args:
        what: PRODUCT, or which gradient.
        by_offset: the coefficients, (H, offsets, E).
        values: (B, G, T, E).
        above: (B, H, T, E), the gradient of the product, if there is one.
        result: see above, entries side by side.
        causal: whether the offsets are 0..T-1.

    Raises:
        MemoryError: there is none left.
    """
    values, above = by_entries(values), by_entries(above)
    (B, G, T, E), H = values.shape, by_offset.shape[0]
    transform = transform_of(length_in_c(max(2, 2 * T - 1)), values.dtype)
    sequences = by_offset[None], values, above, result
    call = _Call(
        *(_Sequences(each.data_ptr(), Strides(*each.stride()[:3]), each.shape[2]) for each in sequences),
        transform.fields(),
        *(B, G, H, E, 0 if causal else T - 1, what, torch.get_num_threads()),
    )
    PRODUCT_IN_TRAINING(values.dtype, call)


def _far_off(dtype: torch.dtype) -> float:
    """By how much the code misses the dense matrix, and its gradients, relative to the largest."""
    with torch.enable_grad():
        leaves = [
            torch.arange(heads * rows * 3, dtype=dtype).mul_(7.3).sin_().view(shape).requires_grad_()
            for heads, rows, shape in ((4, 37, (4, 3, 37)), (2, 19, (1, 2, 19, 3)))
        ]
        found = []
        for product in (CompiledProduct.apply, toeplitz_reference):
            mixed = product(leaves[0], leaves[1], False)
            found.append((mixed.detach(), *torch.autograd.grad(mixed.square().sum(), leaves)))
    return worst(*found) / float(found[1][2].abs().max())


PRODUCT_IN_TRAINING = Compiled(
    Path(__file__).with_name("convolution_gradients.c"), "toeplitz", "Toeplitz product in training", _far_off
)
