"""The Toeplitz product in training: three real transforms forward and three backward.

The gradients of a Toeplitz product are Toeplitz products themselves: that of the values has the offsets turned
around, that of the coefficients correlates the values with the incoming gradient. Autograd's own gradient of a real
transform is a complex one of full length. On a CPU a few heads are transformed at a time, so that they stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from remixer.mixers.convolution import (
    ENTRIES_AT_ONCE,
    gradients_by_autograd,
    transform_length,
    transformed_at_once,
)
from remixer.mixers.toeplitz_gradients_in_c import CompiledProduct, trainable_in_c


class ToeplitzProduct(torch.autograd.Function):
    """See `product_in_training`."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, values: Tensor, causal: bool) -> Tensor:
        """A few heads after the other on a CPU, laid out in memory as (B, H, E, T)."""
        (B, G, T, E), H = values.shape, coefficients.shape[0]
        length, first = transform_length(T), 0 if causal else T - 1
        out = values.new_empty(B, H, max(E, coefficients.shape[1]), T)
        spectra = []
        for heads, readers in _pieces(values, coefficients, length):
            # As they are, from the first offset on: the rows then come T - 1 places later where it is -(T - 1).
            spectrum = torch.fft.rfft(coefficients[readers], length, norm="forward").unflatten(0, (-1, H // G))
            transformed = _transformed(values[:, heads], length)[:, :, None]
            mixed = torch.fft.irfft(transformed * spectrum, length, norm="forward")
            out[:, readers] = mixed[..., first : first + T].flatten(1, 2)
            spectra += [spectrum, transformed]
        ctx.save_for_backward(coefficients, values, *spectra)
        ctx.causal = causal
        return out.transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients of coefficients and values."""
        (gradient,) = gradients
        coefficients, values, *spectra = ctx.saved_tensors
        if torch.is_grad_enabled():  # these gradients will be differentiated themselves
            return *gradients_by_autograd(coefficients, values, ctx.causal, gradient), None
        of_coefficients, of_values = (
            torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else None
            for tensor, needed in zip((coefficients, values), ctx.needs_input_grad, strict=False)
        )
        (_, G, T, E), (H, C, _) = values.shape, coefficients.shape
        length, first = transform_length(T), 0 if ctx.causal else T - 1
        for index, (heads, readers) in enumerate(_pieces(values, coefficients, length)):
            spectrum, transformed = spectra[2 * index : 2 * index + 2]
            incoming = _transformed(gradient[:, readers], length).unflatten(1, (-1, H // G)).conj_physical_()
            if of_values is not None:
                product = _summed(incoming * spectrum, 2)[:, :, 0]
                product = product if product.shape[2] == E else product.sum(2, keepdim=True)
                mixed = torch.fft.irfft(product.conj_physical_(), length, norm="forward").transpose(-1, -2)
                of_values[:, heads, :first] = mixed[..., length - first :, :]
                of_values[:, heads, first:] = mixed[..., : T - first, :]
            if of_coefficients is not None:
                product = _summed(incoming.mul_(transformed), 0)[0].flatten(0, 1)
                product = product if product.shape[1] == C else product.sum(1, keepdim=True)
                lags = torch.fft.irfft(product.conj_physical_(), length)
                of_coefficients[readers, :, :first] = lags[..., length - first :]
                of_coefficients[readers, :, first:] = lags[..., :T]
        return of_coefficients, of_values, None


def product_in_training(coefficients: Tensor, values: Tensor, causal: bool) -> Tensor:
    """`toeplitz_product` of operands of one precision, where gradients are wanted.

    Args:
        coefficients: (H, E or 1, offsets), see `convolution`.
        values: (B, G, T, E or 1).
        causal: whether the offsets are 0..T-1.

    Returns:
        (B, H, T, E).
    """
    if trainable_in_c(coefficients, values):
        return CompiledProduct.apply(coefficients, values, causal)
    return ToeplitzProduct.apply(coefficients, values, causal)


def _transformed(values: Tensor, length: int) -> Tensor:
    """(B, H, T, E) to (B, H, E, length // 2 + 1), complex."""
    if values.is_cuda:
        return transformed_at_once(values, length, values.dtype)
    return torch.fft.rfft(values.transpose(-1, -2), length)


def _summed(product: Tensor, dim: int) -> Tensor:
    """The sum over a dimension, which stays; no pass over memory where there is nothing to add up."""
    return product if product.shape[dim] == 1 else product.sum(dim, keepdim=True)


def _pieces(values: Tensor, coefficients: Tensor, length: int) -> Iterator[tuple[slice, slice]]:
    """A few value heads, and the query heads that read them, at a time: their transforms stay in a CPU's cache."""
    (B, G, _, E), (H, C, _) = values.shape, coefficients.shape
    groups = H // G
    heads = G if values.is_cuda else max(1, ENTRIES_AT_ONCE // (length * B * groups * max(E, C)))
    for first in range(0, G, heads):
        last = min(first + heads, G)
        yield slice(first, last), slice(first * groups, last * groups)
