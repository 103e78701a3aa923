"""One attention with all that could take its place, to be set from outside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from remixer.mixers import Mixer


class Switch(nn.Module):
    """Gives what the chosen one of several mixers gives; each key/value head may have its own.

    Args:
        mixers: of one attention, the exact one first.

    Attributes:
        chosen: for each key/value head, and the query heads that read it, which of the mixers.
    """

    def __init__(self, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.spec = mixers[0].spec
        self.chosen = [0] * self.spec.kv_heads

    def forward(self, **operands: Tensor) -> Tensor:
        """(B, H, T, E) from all operands of the attention, by name."""
        found: dict[int, Tensor] = {}
        for index in set(self.chosen):
            mixer = self.mixers[index]
            assert isinstance(mixer, Mixer)
            found[index] = mixer(**{name: operands[name] for name in mixer.operands if name in operands})
        if len(found) == 1:
            return next(iter(found.values()))
        groups = self.spec.groups
        parts = [found[index][:, g * groups : (g + 1) * groups] for g, index in enumerate(self.chosen)]
        return torch.cat(parts, 1)
