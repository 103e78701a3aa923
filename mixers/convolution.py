"""Toeplitz matrix times values in n log n: circulant embedding and FFT (Qin et al., 2023, section 3.1).

Coefficients are (H, E, offsets) or (H, 1, offsets): one sequence per head and channel, or one per head. The
offset of query i and key j is i - j. A causal operator has the offsets 0..T-1 in this order, any other -(T-1)..T-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.eager import plain_inference, untraced
from remixer.mixers.precision import at_least_float32
from remixer.mixers.workspace import workspace

# How many entries are transformed at once, and how many sequences at least: fewer would spend more on calls than
# they save, more would outgrow the caches.
ENTRIES_AT_ONCE = 2**22
SEQUENCES_AT_LEAST = 32


def toeplitz_matrix(coefficients: Tensor, causal: bool) -> Tensor:
    """The dense matrix M with M[..., i, j] = t_{i-j}, and 0 for j > i if causal.

    Args:
        coefficients: (..., offsets).
        causal: see the module.

    Returns:
        (..., T, T).
    """
    T = tokens_of(coefficients, causal)
    index = torch.arange(T, device=coefficients.device)
    offset = index[:, None] - index
    matrix = coefficients[..., offset.clamp(min=0) if causal else offset + T - 1]
    return matrix.masked_fill(offset < 0, 0.0) if causal else matrix


def toeplitz_reference(coefficients: Tensor, values: Tensor, causal: bool) -> Tensor:
    """`toeplitz_product` in its obvious form: a dense matrix per head and channel, times the values."""
    groups = coefficients.shape[0] // values.shape[1]
    values = values.repeat_interleave(groups, 1)
    matrix = toeplitz_matrix(coefficients, causal)
    return (matrix @ values.transpose(-1, -2)[..., None])[..., 0].transpose(-1, -2)


def toeplitz_product(coefficients: Tensor, values: Tensor, causal: bool) -> Tensor:
    """y_i = sum over j of t_{i-j} v_j, in the precision of `transform_dtype`.

    Args:
        coefficients: (H, E or 1, offsets), see the module.
        values: (B, G, T, E); query head h convolves value head h // (H / G).
        causal: see the module.

    Returns:
        (B, H, T, E).
    """
    dtype = transform_dtype(values.shape[2], torch.promote_types(coefficients.dtype, values.dtype))
    length = transform_length(values.shape[2])
    return convolve(spectrum_of(coefficients.to(dtype), length, causal), values.to(dtype), length)


def tokens_of(coefficients: Tensor, causal: bool) -> int:
    """For how many tokens there are coefficients."""
    return coefficients.shape[-1] if causal else (coefficients.shape[-1] + 1) // 2


def transform_length(tokens: int) -> int:
    """A length of FFT in which values and their offsets don't wrap around, 2 T - 1 at least.

    The least of 1, 9/8, 5/4 and 3/2 times a power of two: these are quick, and at most a third too long. In a graph
    twice the tokens, which can be written without knowing how many they are.

    Examples:
        >>> [transform_length(tokens) for tokens in (1, 2, 3, 100, 1024, 1025)]
        [2, 4, 6, 256, 2048, 2304]
    """
    if torch.compiler.is_compiling():
        return 2 * tokens
    least = max(2, 2 * tokens - 1)
    return min(odd << max(1, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9))


def transform_dtype(tokens: int, dtype: torch.dtype) -> torch.dtype:
    """The precision of transforms: float32 at least, and float64 for short sequences, where it costs little.

    A transform's rounding errors go with the largest coefficients, also in rows that see none of these: where
    such rows are divided by their small sums, float32 would be a digit short of the table of tolerances.
    """
    short = not torch.compiler.is_compiling() and tokens < 256
    return torch.float64 if short else at_least_float32(dtype)


def spectrum_of(coefficients: Tensor, length: int, causal: bool) -> Tensor:
    """The FFT, over its length, of the circulant matrix whose first T rows and columns are the Toeplitz matrix.

    Args:
        coefficients: (H, E or 1, offsets).
        length: of the transform, 2T - 1 at least.
        causal: see the module.

    Returns:
        (H, E or 1, length // 2 + 1), complex.
    """
    if causal:
        return torch.fft.rfft(coefficients, length, norm="forward")
    T = tokens_of(coefficients, causal)
    past, future = coefficients[..., T - 1 :], coefficients[..., : T - 1]
    unused = coefficients.new_zeros(*coefficients.shape[:-1], length - 2 * T + 1)
    return torch.fft.rfft(torch.cat([past, unused, future], -1), length, norm="forward")


def gradients_by_autograd(
    coefficients: Tensor, values: Tensor, causal: bool, gradient: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of `toeplitz_product`, in operators that autograd knows how to differentiate again."""
    length = transform_length(tokens_of(coefficients, causal))
    wanted = [tensor for tensor in (coefficients, values) if tensor.requires_grad]
    mixed = convolve(spectrum_of(coefficients, length, causal), values, length)
    found = iter(torch.autograd.grad(mixed, wanted, gradient, create_graph=True))
    of_coefficients, of_values = (next(found) if tensor.requires_grad else None for tensor in (coefficients, values))
    return of_coefficients, of_values


def convolve(spectrum: Tensor, values: Tensor, length: int, scale: Tensor | None = None) -> Tensor:
    """The Toeplitz product, given the spectrum of the coefficients.

    Args:
        spectrum: (H, E or 1, length // 2 + 1), complex, see `spectrum_of`.
        values: (B, G, T, E or 1), real.
        length: of the transform.
        scale: (H, E or 1, T), factor on the rows, or None.

    Returns:
        (B, H, T, E), in the spectrum's precision.
    """
    if plain_inference(spectrum, values):
        return _convolve_in_cache(spectrum, values.to(spectrum.real.dtype), length, scale)
    if values.is_cuda and not torch.is_grad_enabled() and untraced(spectrum, values):
        return _convolve_in_place(spectrum, values, length, scale)
    _, G, T, _ = values.shape
    H = spectrum.shape[0]
    transformed = torch.fft.rfft(values.to(spectrum.real.dtype).transpose(-1, -2), length)
    product = transformed[:, :, None] * spectrum.unflatten(0, (G, H // G))  # no second FFT for a shared value head
    mixed = torch.fft.irfft(product.flatten(1, 2), length, norm="forward")[..., :T]
    if scale is not None:
        mixed = mixed * scale
    return mixed.transpose(-1, -2)


def transformed_at_once(values: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The real transforms of values (B, H, T, E), laid out for them, extended and cast in one pass over memory.

    Returns:
        (B, H, E, length // 2 + 1), complex.
    """
    B, H, T, E = values.shape
    padded = values.new_empty(B, H, E, length, dtype=dtype)
    padded[..., :T] = values.transpose(-1, -2)
    padded[..., T:] = 0.0
    return torch.fft.rfft(padded)


def _convolve_in_place(spectrum: Tensor, values: Tensor, length: int, scale: Tensor | None) -> Tensor:
    """All sequences at once, where nobody asks for gradients: few passes over memory, and few calls."""
    transformed = transformed_at_once(values, length, spectrum.real.dtype)
    return _filtered(transformed, spectrum, values.shape[2], length, scale).transpose(-1, -2)


def _convolve_in_cache(spectrum: Tensor, values: Tensor, length: int, scale: Tensor | None) -> Tensor:
    """A few sequences at a time: their transforms stay in cache, which halves the time of long sequences.

    The result lies in memory as (B, H, E, T), which a model that merges the heads of every token reads for free.
    """
    (B, G, T, E), H = values.shape, spectrum.shape[0]
    groups, channels = H // G, max(E, spectrum.shape[1])
    sequences = max(SEQUENCES_AT_LEAST, ENTRIES_AT_ONCE // length)
    samples = max(1, min(B, sequences // (channels * groups)))
    heads = max(1, min(G, sequences // (channels * groups * samples)))
    if samples >= B and heads >= G:
        return _convolve_some(spectrum, values, length, scale).transpose(-1, -2)
    out = values.new_empty(B, H, channels, T)
    for b in range(0, B, samples):
        for g in range(0, G, heads):
            readers = slice(g * groups, min(g + heads, G) * groups)
            some = values[b : b + samples, g : g + heads]
            of_some = None if scale is None else scale[readers]
            out[b : b + samples, readers] = _convolve_some(spectrum[readers], some, length, of_some)
    return out.transpose(-1, -2)


def _convolve_some(spectrum: Tensor, values: Tensor, length: int, scale: Tensor | None) -> Tensor:
    """`convolve` in place, (B, H, E, T)."""
    B, G, T, E = values.shape
    padded = workspace.take_zeros("sequences", (B, G, E, length), T, values.dtype)
    padded[..., :T] = values.transpose(-1, -2)
    return _filtered(torch.fft.rfft(padded), spectrum, T, length, scale)


def _filtered(transformed: Tensor, spectrum: Tensor, tokens: int, length: int, scale: Tensor | None) -> Tensor:
    """What transforms (B, G, E, length // 2 + 1), which may be written into, become by a spectrum: (B, H, E, T)."""
    G, E = transformed.shape[1:3]
    if spectrum.shape[0] > G or spectrum.shape[1] > E:
        transformed = (transformed[:, :, None] * spectrum.unflatten(0, (G, -1))).flatten(1, 2)
    else:
        transformed.mul_(spectrum)
    mixed = torch.fft.irfft(transformed, length, norm="forward")[..., :tokens]
    return mixed if scale is None else mixed.mul_(scale)
