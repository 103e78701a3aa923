"""Toeplitz products whose coefficients fade to nothing within a reach far shorter than the sequence.

With decay 0.99 a coefficient 10,000 tokens away is below the least number that float32 holds: exactly 0. Sequences much
longer than this reach are convolved block by block (overlap-save; Oppenheim and Schafer, section 8.7): linear in
their length, every transform in cache, and coefficients are needed, and kept, for the reach alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The length of a block's transform over the reach on both sides, and over all at least; measured, shallow optima.
SPANS_PER_BLOCK = 4
SHORTEST_TRANSFORM = 2**14
ENTRIES_AT_ONCE = 2**21


@dataclass(frozen=True)
class LocalKernel:
    """Coefficients of the offsets -(reach - 1)..reach - 1; beyond, they are 0.

    Attributes:
        spectrum: (H, E or 1, length // 2 + 1), complex, of the coefficients from the first offset to the last.
        length: of the transform.
        reach: how many offsets there are to one side, 0 included.
        causal: whether those before 0 are all 0.
        past: (H, E or 1, reach), sums over the offsets 0..k.
        future: the same over the offsets -1..-k, 0 for k = 0.
        itself: (H, E or 1, 1), what every query gives itself.
        normalise: whether rows are divided by their sums.
    """

    spectrum: Tensor
    length: int
    reach: int
    causal: bool
    past: Tensor
    future: Tensor
    itself: Tensor
    normalise: bool

    @classmethod
    def of(cls, coefficients: Tensor, causal: bool, normalise: bool) -> LocalKernel:
        """From (H, E or 1, offsets), the offsets as in ToeplitzOperator.coefficients for `reach` tokens."""
        reach = coefficients.shape[-1] if causal else (coefficients.shape[-1] + 1) // 2
        length = SHORTEST_TRANSFORM
        while length < SPANS_PER_BLOCK * reach:
            length *= 2
        spectrum = torch.fft.rfft(coefficients, length)  # from the latest key to the earliest
        middle = coefficients.shape[-1] - reach
        past = coefficients[..., middle:].cumsum(-1)
        future = torch.zeros_like(past)
        if not causal:
            future = F.pad(coefficients[..., :middle].flip(-1), (1, 0)).cumsum(-1)
        itself = coefficients[..., middle : middle + 1].clamp(min=torch.finfo(coefficients.dtype).tiny)
        return cls(spectrum, length, reach, causal, past, future, itself, normalise)

    def times(self, values: Tensor, weights: Tensor | None = None, own: Tensor | None = None) -> Tensor:
        """The product, its rows divided by their sums over what keys weigh where that is asked for.

        Args:
            values: (B, G, T, E), real, times the weights.
            weights: (B, G or 1, T, E or 1), 0 where no key exists, or None where all weigh 1.
            own: (B, G, T, E or 1), what each query's own key weighs, or None where all weigh 1.

        Returns:
            (B, H, T, E), laid out in memory as (B, H, E, T).
        """
        (B, G, T, E), H = values.shape, self.spectrum.shape[0]
        out = values.new_empty(B, H, E, T, dtype=self.past.dtype)
        for h in range(H):
            g = h // (H // G)
            self._convolve(values[:, g].transpose(1, 2), h, out[:, h])
            if weights is not None and self.normalise:
                seen = out.new_empty(B, self.spectrum.shape[1], T)
                self._convolve(weights[:, g % weights.shape[1]].transpose(1, 2), h, seen)
                itself = self.itself[h] if own is None else self.itself[h] * own[:, g].transpose(1, 2)
                out[:, h] /= torch.maximum(seen, itself)
            elif self.normalise:
                self._divide(out[:, h], h)
        return out.transpose(2, 3)

    def _convolve(self, rows: Tensor, head: int, out: Tensor) -> None:
        """Head `head`: rows (B, E or 1, T) into out (B, E, T)."""
        T, before = rows.shape[-1], self.reach - 1
        after = 0 if self.causal else before
        block = self.length - before - after
        blocks = -(-T // block)
        padded = F.pad(rows.to(out.dtype), (before, blocks * block - T + after))
        overlapping = padded.unfold(2, self.length, block)
        most = max(1, ENTRIES_AT_ONCE // (out.shape[0] * out.shape[1] * self.length))
        for first in range(0, blocks, most):
            some = overlapping[:, :, first : first + most]
            product = torch.fft.rfft(some) * self.spectrum[head][:, None]
            # The first before + after entries are those that wrap around.
            mixed = torch.fft.irfft(product, self.length)[..., before + after :]
            start = first * block
            stop = min(T, start + some.shape[2] * block)
            out[..., start:stop] = mixed.flatten(2)[..., : stop - start]

    def _divide(self, out: Tensor, head: int) -> None:
        """(B, E, T) by what each row sums up to, which differs near the ends only."""
        T, tiny = out.shape[-1], torch.finfo(out.dtype).tiny
        past, future = self.past[head], self.future[head]
        whole = (past[:, -1:] + future[:, -1:]).clamp(min=tiny)
        if 2 * self.reach <= T:
            edge = self.reach
            out[..., :edge] /= (past + future[:, -1:]).clamp(min=tiny)
            out[..., T - edge :] /= (past[:, -1:] + future.flip(-1)).clamp(min=tiny)
            out[..., edge : T - edge] /= whole
            return
        index = torch.arange(T, device=out.device)
        sums = past[:, index.clamp(max=self.reach - 1)] + future[:, (T - 1 - index).clamp(max=self.reach - 1)]
        out /= sums.clamp(min=tiny)
