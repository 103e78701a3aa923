"""A closed-form start of what keys weigh in a Toeplitz mixer: by how much more they get than their offset explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from remixer.mixers.key_weights import MOST, KeyWeights
from remixer.mixers.start import Starter, some_rows

if TYPE_CHECKING:
    from remixer.mixers.toeplitz import ToeplitzMixer

_RIDGE = 1e-2  # of the largest eigenvalue


class KeyStart(Starter):
    """One Newton step of u in the rows P_ij = t_{i-j} exp(k_j u) / sum of these towards those of the attention.

    It goes up the sum of attention times log P, which is concave in u: its gradient is what keys get above what P gives
    them, sum of (attention - P)_ij k_j, and minus its second derivative the covariance of the keys under the rows of P.
    All channels of a head start alike.
    """

    def __init__(self, mixer: ToeplitzMixer) -> None:
        self.mixer = mixer
        self._above: Tensor | float = 0.0  # (G, D)
        self._spread: Tensor | float = 0.0  # (G, D, D)

    def watch(self, target: Tensor, operands: Mapping[str, Tensor]) -> None:
        """See Starter.watch."""
        mixer, key = self.mixer, operands["key"].double()
        rows, wanted, present = some_rows(mixer.spec, operands)
        key = key.masked_fill(~present[:, None, :, None], 0.0)
        score = (key @ _weights(mixer).weight.double().mean(-1, keepdim=True) / MOST).tanh()  # (B, G, T, 1)
        weights = torch.exp(MOST * score).masked_fill(~present[:, None, :, None], 0.0)
        read = key * (1.0 - score.square())  # what a small change of u adds to the logarithm of a weight
        given = _rows(mixer, rows, key.shape[2]).unflatten(0, (mixer.spec.kv_heads, -1))  # (G, H / G, n, T)
        given = given * weights[:, :, None].transpose(-1, -2)
        given = given / given.sum(-1, keepdim=True).clamp(min=torch.finfo(given.dtype).tiny)
        wanted = wanted.unflatten(1, given.shape[1:3])
        given = given * wanted.sum(-1, keepdim=True)  # rows that the attention gives to a sink in part count less
        self._above = self._above + ((wanted - given).sum((2, 3))[..., None] * read).sum((0, 2))
        square = torch.einsum("bgt,bgtd,bgte->gde", given.sum((2, 3)), read, read)
        means = given @ read[:, :, None]  # (B, G, H / G, n, D)
        share = wanted.sum(-1, keepdim=True).clamp(min=torch.finfo(given.dtype).tiny)
        self._spread = self._spread + square - torch.einsum("bgrnd,bgrne->gde", means / share, means)

    def settle(self) -> None:
        """See Starter.settle."""
        assert isinstance(self._above, Tensor)
        assert isinstance(self._spread, Tensor)
        largest = torch.linalg.eigvalsh(self._spread)[:, -1].clamp(min=torch.finfo(torch.float64).tiny)
        unit = torch.eye(self._above.shape[-1], dtype=torch.float64, device=self._above.device)
        step = torch.linalg.solve(self._spread + _RIDGE * largest[:, None, None] * unit, self._above)
        weight = _weights(self.mixer).weight
        weight.add_(step[..., None].to(weight.dtype))


def _weights(mixer: ToeplitzMixer) -> KeyWeights:
    assert mixer.key_weights is not None
    return mixer.key_weights


def _rows(mixer: ToeplitzMixer, rows: Tensor, tokens: int) -> Tensor:
    """t_{i-j} for some queries i and all keys j, (H, n, T) in float64, the mean over channels."""
    coefficients = mixer.coefficients(tokens).double().mean(1)
    offset = rows[:, None] - torch.arange(tokens, device=rows.device)
    if not mixer.spec.causal:
        return coefficients[:, offset + tokens - 1]
    return coefficients[:, offset.clamp(min=0)] * (offset >= 0)
