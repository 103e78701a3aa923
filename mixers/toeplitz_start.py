"""Closed-form starts of a Toeplitz mixer: coefficients by the attention's weight per offset, and its gate's scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from remixer.mixers.gate import Gate
from remixer.mixers.start import Profile, Starter

if TYPE_CHECKING:
    from remixer.mixers.toeplitz import ToeplitzMixer

_RIDGE = 1e-3  # of the largest eigenvalue: large weights would be nearer, and the first step of training would break it
_LEAST = 1e-7  # weights below are as good as none
_EVERY = 0.1  # how much all offsets count alike
_WIDEST = 1.9  # a gate gives less than 2


class ProfileStart(Starter):
    """t_k becomes the weight of offset k, as nearly as the position encoder's last layer can give it.

    Where rows are normalised, these are the t whose rows are nearest to the attention's, else the mean weights. The
    last layer is fitted by least squares, to logarithms in the first case; offsets count by their weights. All channels
    of a head start alike.
    """

    def __init__(self, mixer: ToeplitzMixer) -> None:
        self.mixer, self.seen = mixer, Profile(mixer.spec)

    def watch(self, target: Tensor, operands: Mapping[str, Tensor]) -> None:
        """See Starter.watch."""
        self.seen.watch(operands)

    def settle(self) -> None:
        """See Starter.settle."""
        given, pairs = self.seen.weights()
        wanted = self.seen.shares() if self.mixer.normalise else given / pairs.clamp(min=1.0)
        fit_coefficients(self.mixer, wanted, given, pairs)


def fit_coefficients(mixer: ToeplitzMixer, wanted: Tensor, given: Tensor, pairs: Tensor) -> None:
    """Bring a mixer's coefficients near to these by least squares; to logarithms where rows are normalised.

    Args:
        mixer: whose encoder's last layer is set.
        wanted: (H, 2 T - 1), of the offsets -(T-1) to T-1, in float64.
        given: how much an offset counts, likewise.
        pairs: how often it was seen, (2 T - 1,).
    """
    last, T = mixer.encoder.last, (given.shape[1] + 1) // 2
    if mixer.spec.causal:
        given, pairs, wanted = given[:, T - 1 :], pairs[T - 1 :], wanted[:, T - 1 :]
    offsets = mixer.offsets(T)
    fade = mixer.fade(offsets).double()
    fade = fade.mean(1) if fade.dim() == 3 else fade.expand_as(wanted)
    wanted = wanted.clamp(min=_LEAST).log() - fade if mixer.normalise else wanted / fade.exp().clamp(min=_LEAST)
    read = mixer.encoder.features(offsets).double()
    read = torch.cat([read, read.new_ones(len(read), 1)], 1)
    for head, (targets, weight) in enumerate(zip(wanted, given, strict=True)):
        relevance = weight / weight.sum() + _EVERY * pairs / pairs.sum()
        gram = read.T @ (relevance[:, None] * read)
        gram.diagonal().add_(_RIDGE * torch.linalg.eigvalsh(gram)[-1])
        solved = torch.linalg.solve(gram, read.T @ (relevance * targets))
        rows = slice(head * mixer.channels, (head + 1) * mixer.channels)
        last.weight[rows] = solved[:-1].to(last.weight.dtype)
        last.bias[rows] = solved[-1].to(last.bias.dtype)


class GateScale(Starter):
    """The gate becomes the factor, channel by channel, by which what is mixed comes nearest to the target."""

    def __init__(self, mixer: ToeplitzMixer) -> None:
        self.mixer = mixer
        self._products: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def watch(self, target: Tensor, operands: Mapping[str, Tensor]) -> None:
        """See Starter.watch."""
        wired = {name: operands[name] for name in self.mixer.operands if name in operands}
        mixed, wanted, exist = self.mixer(**wired).double(), target.double(), operands.get("padding")
        if exist is not None:
            mixed = mixed.masked_fill(~exist[:, None, :, None], 0.0)
        self._products = self._products + (mixed * wanted).sum((0, 2))
        self._squares = self._squares + mixed.square().sum((0, 2))

    def settle(self) -> None:
        """See Starter.settle."""
        gate = self.mixer.gate
        assert isinstance(gate, Gate)
        assert isinstance(self._products, Tensor)
        assert isinstance(self._squares, Tensor)
        scale = self._products / self._squares.clamp(min=torch.finfo(torch.float64).tiny)
        now = 2.0 * torch.sigmoid(gate.bias[:, 0].double())
        scale = (scale * now).clamp(2.0 - _WIDEST, _WIDEST)
        gate.bias[:, 0] = torch.logit(scale / 2.0).to(gate.bias.dtype)
