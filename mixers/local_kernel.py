"""Toeplitz products whose coefficients fade to nothing within a reach far shorter than the sequence.

With decay 0.99 a coefficient 10,000 tokens away is below the least number that float32 holds: exactly 0. Sequences much
longer than this reach are convolved block by block (overlap-save; Oppenheim and Schafer, section 8.7): linear in
their length, every transform in cache, and coefficients are needed, and kept, for the reach alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.convolution_in_c import Blocks, Spectrum, convolve_in_c, length_in_c

# The length of a block's transform over the reach on both sides, and over all at least; measured, shallow optima.
SPANS_PER_BLOCK = 4
SHORTEST_TRANSFORM = 2**14
ENTRIES_AT_ONCE = 2**21
# The same of compiled transforms: how long at most, and what it costs to read and write a number, in stages of radix 2.
LONGEST_TRANSFORM, READING = 2**16, 8


def cost_in_c(length: int, tokens: int, reach: int, causal: bool) -> float:
    """What compiled transforms of a length cost for so many tokens, in stages of radix 2 of one number."""
    step = blocks_of(length, tokens, reach, causal).step
    return -(-tokens // step) * length * (math.log2(length) + READING)


def length_of_blocks(tokens: int, reach: int, causal: bool) -> int:
    """The length of compiled transforms by which so many tokens cost least, see `blocks_of`.

    Up to LONGEST_TRANSFORM, beyond which they outgrow the caches, or the least that makes more rows than it loses. One
    that makes all rows may lose more.
    """
    beside = (reach - 1) * (1 if causal else 2)
    lengths = [length_in_c(2 * beside + 2)]
    while lengths[-1] < LONGEST_TRANSFORM:
        lengths.append(length_in_c(lengths[-1] + 1))
    whole = length_in_c(tokens + reach - 1)
    if whole < lengths[-1]:
        lengths.append(whole)
    return min(lengths, key=lambda length: cost_in_c(length, tokens, reach, causal))


def less_work(tokens: int, length: int, reach: int, causal: bool) -> bool:
    """Whether compiled transforms of this length cost less than one that coefficients of all offsets need."""
    whole = length_in_c(2 * tokens - 1)
    return cost_in_c(length, tokens, reach, causal) < cost_in_c(whole, tokens, tokens, causal)


def blocks_of(length: int, tokens: int, reach: int, causal: bool) -> Blocks:
    """How tokens are cut: not at all where nothing wraps around into their rows, else they overlap by the reach."""
    after = 0 if causal else reach - 1
    if length >= tokens + reach - 1:
        return Blocks(tokens, 0, after)
    return Blocks(length - (reach - 1) - after, reach - 1, reach - 1 + after)


@dataclass(frozen=True)
class LocalKernel:
    """Coefficients of the offsets -(reach - 1)..reach - 1; beyond, they are 0.

    Attributes:
        spectrum: (H, E or 1, length // 2 + 1), complex, of the coefficients from the first offset to the last; or that
            as compiled code takes it.
        length: of the transform.
        reach: how many offsets there are to one side, 0 included.
        causal: whether those before 0 are all 0.
        past: (H, E or 1, reach), sums over the offsets 0..k.
        future: the same over the offsets -1..-k, 0 for k = 0.
        itself: (H, E or 1, 1), what every query gives itself.
        normalise: whether rows are divided by their sums.
        scale: 1 / what the first and the last `reach` rows of a long sequence sum up to, as compiled code takes it.
    """

    spectrum: Tensor | Spectrum
    length: int
    reach: int
    causal: bool
    past: Tensor
    future: Tensor
    itself: Tensor
    normalise: bool
    scale: Tensor | None = None

    @classmethod
    def of(
        cls, coefficients: Tensor, causal: bool, normalise: bool, *, compiled_length: int | None = None
    ) -> LocalKernel:
        """From (H, E or 1, offsets), the offsets as in ToeplitzOperator.coefficients for `reach` tokens.

        With a length of transforms, compiled code makes them, see `length_of_blocks`.
        """
        reach = coefficients.shape[-1] if causal else (coefficients.shape[-1] + 1) // 2
        length = SHORTEST_TRANSFORM if compiled_length is None else compiled_length
        while compiled_length is None and length < SPANS_PER_BLOCK * reach:
            length *= 2
        if normalise:  # by the sum of a whole row, which only those near the ends are not
            coefficients = coefficients / coefficients.sum(-1, keepdim=True).clamp(
                min=torch.finfo(coefficients.dtype).tiny
            )
        transformed = torch.fft.rfft(coefficients, length, norm="forward")  # from the latest key to the earliest
        spectrum = transformed if compiled_length is None else Spectrum.of(transformed, length)
        middle = coefficients.shape[-1] - reach
        past = coefficients[..., middle:].cumsum(-1)
        future = torch.zeros_like(past)
        if not causal:
            future = F.pad(coefficients[..., :middle].flip(-1), (1, 0)).cumsum(-1)
        itself = coefficients[..., middle : middle + 1].clamp(min=torch.finfo(coefficients.dtype).tiny)
        kernel = cls(spectrum, length, reach, causal, past, future, itself, normalise)
        if not (isinstance(spectrum, Spectrum) and normalise):
            return kernel
        sums = torch.cat(kernel._sums_near_ends(slice(None)), -1)
        return replace(kernel, scale=spectrum.scale_of(sums.reciprocal()))

    def times(self, values: Tensor, weights: Tensor | None = None, own: Tensor | None = None) -> Tensor:
        """The product, its rows divided by their sums over what keys weigh where that is asked for.

        Args:
            values: (B, G, T, E), real, times the weights.
            weights: (B, G or 1, T, E or 1), 0 where no key exists, or None where all weigh 1.
            own: (B, G, T, E or 1), what each query's own key weighs, or None where all weigh 1.

        Returns:
            (B, H, T, E), laid out in memory as (B, H, E, T), or by compiled code as (B, T, H, E).
        """
        if isinstance(self.spectrum, Spectrum):
            return self._times_in_c(self.spectrum, values, weights, own)
        (B, G, T, E), H = values.shape, self.spectrum.shape[0]
        out = values.new_empty(B, H, E, T, dtype=self.past.dtype)
        for h in range(H):
            g = h // (H // G)
            self._convolve(self.spectrum[h], values[:, g].transpose(1, 2), out[:, h])
            if weights is not None and self.normalise:
                seen = out.new_empty(B, self.spectrum.shape[1], T)
                self._convolve(self.spectrum[h], weights[:, g % weights.shape[1]].transpose(1, 2), seen)
                out[:, h] /= torch.maximum(seen, self._least(own, g, h))
            elif self.normalise:
                self._divide(out[:, h], h)
        return out.transpose(2, 3)

    def _times_in_c(self, spectrum: Spectrum, values: Tensor, weights: Tensor | None, own: Tensor | None) -> Tensor:
        blocks = blocks_of(self.length, values.shape[2], self.reach, self.causal)
        scale = self.scale if weights is None and 2 * self.reach <= values.shape[2] else None
        out = convolve_in_c(spectrum, values.to(self.past.dtype), scale, blocks)
        if not self.normalise or scale is not None:
            return out
        for h in range(out.shape[1]):
            g, rows = h // (out.shape[1] // values.shape[1]), out[:, h].transpose(1, 2)
            if weights is None:
                self._divide(rows, h)
                continue
            theirs = weights[:, g % weights.shape[1], None].to(out.dtype)
            seen = convolve_in_c(spectrum.of_head(h), theirs, None, blocks)[:, 0].transpose(1, 2)
            rows /= torch.maximum(seen, self._least(own, g, h))
        return out

    def _least(self, own: Tensor | None, value_head: int, head: int) -> Tensor:
        """What the rows of a head sum up to at least, broadcastable to (B, E, T)."""
        return self.itself[head] if own is None else self.itself[head] * own[:, value_head].transpose(1, 2)

    def _convolve(self, spectrum: Tensor, rows: Tensor, out: Tensor) -> None:
        """Rows (B, E or 1, T) into out (B, E, T), by the spectrum of a head (E or 1, length // 2 + 1)."""
        T, before = rows.shape[-1], self.reach - 1
        after = 0 if self.causal else before
        block = self.length - before - after
        blocks = -(-T // block)
        padded = F.pad(rows.to(out.dtype), (before, blocks * block - T + after))
        overlapping = padded.unfold(2, self.length, block)
        most = max(1, ENTRIES_AT_ONCE // (out.shape[0] * out.shape[1] * self.length))
        for first in range(0, blocks, most):
            some = overlapping[:, :, first : first + most]
            product = torch.fft.rfft(some) * spectrum[:, None]
            # The first before + after entries are those that wrap around.
            mixed = torch.fft.irfft(product, self.length, norm="forward")[..., before + after :]
            start = first * block
            stop = min(T, start + some.shape[2] * block)
            out[..., start:stop] = mixed.flatten(2)[..., : stop - start]

    def _divide(self, out: Tensor, head: int) -> None:
        """(B, E, T) by what each row sums up to, which is not 1 near the ends only."""
        T, tiny = out.shape[-1], torch.finfo(out.dtype).tiny
        if 2 * self.reach <= T:
            first, last = self._sums_near_ends(head)
            out[..., : self.reach] /= first
            out[..., T - self.reach :] /= last
            return
        past, future = self.past[head], self.future[head]
        index = torch.arange(T, device=out.device)
        sums = past[:, index.clamp(max=self.reach - 1)] + future[:, (T - 1 - index).clamp(max=self.reach - 1)]
        out /= sums.clamp(min=tiny)

    def _sums_near_ends(self, heads: int | slice) -> tuple[Tensor, Tensor]:
        """What the first and the last `reach` rows of a sequence sum up to that is twice as long at least."""
        past, future, tiny = self.past[heads], self.future[heads], torch.finfo(self.past.dtype).tiny
        return (past + future[..., -1:]).clamp(min=tiny), (past[..., -1:] + future.flip(-1)).clamp(min=tiny)
