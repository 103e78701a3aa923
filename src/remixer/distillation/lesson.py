"""What a mixer learns at one site: to give what the attention gives."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from remixer.mixers import Mixer
from remixer.mixers.precision import at_least_float32
from remixer.mixers.start import Starter


class Lesson(nn.Module):
    """Stands beside an attention in the original's graph, and is given all that it reads and gives.

    Args:
        mixer: the one that is to learn. Of lower precision than float32, a copy in float32 learns in its place.

    Attributes:
        pupil: what learns.
        task: to "learn" leaves gradients behind, to "measure" does not, to "start" shows it to the starter.
        starter: the closed-form start that is being made.
    """

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer
        low = any(each.dtype != at_least_float32(each.dtype) for each in mixer.parameters())
        self.pupil = copy.deepcopy(mixer).float() if low else mixer
        self.task: Literal["learn", "measure", "start"] = "measure"
        self.starter: Starter | None = None

    def forward(self, target: Tensor, **operands: Tensor) -> Tensor:
        """The squared error of what the mixer gives, over the squares of what the attention gives."""
        dtype = at_least_float32(target.dtype)
        given = {name: each.to(dtype) if each.is_floating_point() else each for name, each in operands.items()}
        wanted = target.to(dtype)
        if self.task == "start":
            if self.starter is not None:
                self.starter.watch(wanted, given)
            return target.new_zeros((), dtype=dtype)
        wired = {name: given[name] for name in self.pupil.operands if name in given}
        exist = given.get("padding") if not self.mixer.spec.cross else None
        with torch.set_grad_enabled(self.task == "learn"):
            error = relative_error(self.pupil(**wired), wanted, exist)
            if error.requires_grad:  # not where a window covers the whole sequence
                error.backward()
        return error.detach()

    def settle(self) -> None:
        """Give the mixer what its copy has learned."""
        if self.pupil is not self.mixer:
            with torch.no_grad():
                for own, learned in zip(self.mixer.parameters(), self.pupil.parameters(), strict=True):
                    own.copy_(learned)


def relative_error(mixed: Tensor, wanted: Tensor, exist: Tensor | None) -> Tensor:
    """|mixed - wanted|^2 / |wanted|^2 over the tokens that exist.

    Args:
        mixed: (B, H, T, E).
        wanted: likewise.
        exist: (B, T) bool, or None.
    """
    difference = mixed - wanted
    if exist is not None:
        gone = ~exist[:, None, :, None]
        difference, wanted = difference.masked_fill(gone, 0.0), wanted.masked_fill(gone, 0.0)
    return difference.square().sum() / wanted.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny)
