"""Closed-form starts of a Toeplitz mixer that weighs keys: of their weights, and of coefficients beside these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.key_weights import MOST
from remixer.mixers.start import Starter, some_rows
from remixer.mixers.toeplitz_start import fit_coefficients

if TYPE_CHECKING:
    from remixer.mixers.toeplitz import ToeplitzMixer

STEPS = 4  # of Newton's: on a pretrained model the last one changes next to nothing
_RIDGE = 1e-2  # of the largest eigenvalue
_TINY = torch.finfo(torch.float64).tiny


class KeyStart(Starter):
    """One Newton step of u in the rows P_ij = t_{i-j} exp(k_j u) / sum of these towards those of the attention.

    It goes up the sum of attention times log P, which is concave in u: its gradient is what keys get above what P gives
    them, sum of (attention - P)_ij k_j, and minus its second derivative the covariance of the keys under the rows of P.
    A step is damped, divided by 1 + its own length (Nesterov, 2004, "Introductory Lectures on Convex Optimization",
    section 4.1.5): none changes the logarithms of the weights by more than about 1, and several end near the best u.
    All channels of a head start alike.
    """

    def __init__(self, mixer: ToeplitzMixer) -> None:
        self.mixer = mixer
        self._above: Tensor | float = 0.0  # (G, D)
        self._spread: Tensor | float = 0.0  # (G, D, D)
        self._rows: Tensor | float = 0.0  # (G,)

    def watch(self, target: Tensor, operands: Mapping[str, Tensor]) -> None:
        """See Starter.watch."""
        _, wanted, given, read = _both(self.mixer, operands)
        self._rows = self._rows + wanted.sum((0, 2, 3, 4))
        self._above = self._above + ((wanted - given).sum((2, 3))[..., None] * read).sum((0, 2))
        square = torch.einsum("bgt,bgtd,bgte->gde", given.sum((2, 3)), read, read)
        sums = given @ read[:, :, None]  # (B, G, H / G, n, D)
        means = sums / wanted.sum(-1, keepdim=True).clamp(min=_TINY)
        self._spread = self._spread + square - torch.einsum("bgrnd,bgrne->gde", means, sums)

    def settle(self) -> None:
        """See Starter.settle."""
        assert isinstance(self._above, Tensor)
        assert isinstance(self._spread, Tensor)
        assert isinstance(self._rows, Tensor)
        assert self.mixer.key_weights is not None
        largest = torch.linalg.eigvalsh(self._spread)[:, -1].clamp(min=_TINY)
        unit = torch.eye(self._above.shape[-1], dtype=torch.float64, device=self._above.device)
        step = torch.linalg.solve(self._spread + _RIDGE * largest[:, None, None] * unit, self._above)
        # How far it moves the logarithms of weights within a row, root of the mean square.
        moves = ((step * self._above).sum(-1, keepdim=True) / self._rows[:, None].clamp(min=1.0)).clamp(min=0.0).sqrt()
        step = step / (1.0 + moves)
        weight = self.mixer.key_weights.weight
        weight.add_(step[..., None].to(weight.dtype))


class OffsetStart(Starter):
    """Coefficients beside what keys weigh: t_k times what the attention gives the offset k over what P gives it.

    A step of iterative proportional fitting (Deming and Stephan, 1940), which never makes attention times log P less;
    then the encoder is fitted as at the first start.
    """

    def __init__(self, mixer: ToeplitzMixer) -> None:
        self.mixer = mixer
        self._sums: list[Tensor] = []  # of each batch, (2 H + 1, 2 T - 1)

    def watch(self, target: Tensor, operands: Mapping[str, Tensor]) -> None:
        """See Starter.watch."""
        rows, wanted, given, _ = _both(self.mixer, operands)
        T, exist = wanted.shape[-1], operands.get("padding")
        present = wanted.new_ones(1, T) if exist is None else exist.double()
        pairs = present[:, rows, None] * present[:, None]
        masses = torch.cat([wanted.flatten(1, 2).sum(0), given.flatten(1, 2).sum(0), pairs.sum(0, keepdim=True)])
        place = (rows[:, None] - torch.arange(T, device=rows.device) + T - 1).flatten()
        self._sums.append(masses.new_zeros(len(masses), 2 * T - 1).index_add_(1, place, masses.flatten(1)))

    def settle(self) -> None:
        """See Starter.settle."""
        longest = max(each.shape[1] for each in self._sums)
        pads = [(longest - each.shape[1]) // 2 for each in self._sums]
        sums = torch.stack([F.pad(each, (pad, pad)) for each, pad in zip(self._sums, pads, strict=True)]).sum(0)
        wanted, given = sums[:-1].chunk(2)
        T = (longest + 1) // 2
        now = self.mixer.coefficients(T).double().mean(1)
        now = F.pad(now, (longest - now.shape[1], 0))
        fitted = now * wanted / given.clamp(min=_TINY)
        fit_coefficients(self.mixer, fitted / fitted.amax(1, keepdim=True).clamp(min=_TINY), wanted, sums[-1])


class _Both(NamedTuple):
    """Rows of the attention and of a mixer, side by side.

    Attributes:
        rows: which queries, (n,).
        wanted: the attention's weights, (B, G, H / G, n, T) in float64, 0 where there is no query or key.
        given: the mixer's; where the attention gives a sink a part of a row, the row counts less in both.
        read: what a small change of u adds to the logarithm of a key's weight, (B, G, T, D).
    """

    rows: Tensor
    wanted: Tensor
    given: Tensor
    read: Tensor


def _both(mixer: ToeplitzMixer, operands: Mapping[str, Tensor]) -> _Both:
    assert mixer.key_weights is not None
    rows, wanted, present = some_rows(mixer.spec, operands)
    gone = ~present[:, None, :, None]
    key = operands["key"].double().masked_fill(gone, 0.0)
    score = (key @ mixer.key_weights.weight.double().mean(-1, keepdim=True) / MOST).tanh()  # (B, G, T, 1)
    weights = torch.exp(MOST * score).masked_fill(gone, 0.0)
    given = _coefficients(mixer, rows, key.shape[2]).unflatten(0, (mixer.spec.kv_heads, -1))
    given = given * weights[:, :, None].transpose(-1, -2)
    wanted = wanted.unflatten(1, given.shape[1:3])
    given = given / given.sum(-1, keepdim=True).clamp(min=_TINY) * wanted.sum(-1, keepdim=True)
    return _Both(rows, wanted, given, key * (1.0 - score.square()))


def _coefficients(mixer: ToeplitzMixer, rows: Tensor, tokens: int) -> Tensor:
    """t_{i-j} for some queries i and all keys j, (H, n, T) in float64, the mean over channels."""
    coefficients = mixer.coefficients(tokens).double().mean(1)
    offset = rows[:, None] - torch.arange(tokens, device=rows.device)
    if not mixer.spec.causal:
        return coefficients[:, offset + tokens - 1]
    return coefficients[:, offset.clamp(min=0)] * (offset >= 0)
