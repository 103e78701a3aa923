"""The relative position encoder of TNN (Qin et al., 2023, section 3.2): an MLP from offset to coefficients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers.precision import at_least_float32, unrounded


def simple_rms_norm(hidden: Tensor) -> Tensor:
    """X / (|x| / sqrt(d) + 1e-8) over the last dimension: an RMSNorm without a learned scale."""
    size = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True) * hidden.shape[-1] ** -0.5
    return hidden / (size + 1e-8)


class PositionEncoder(nn.Module):
    """Linear(1 -> r), `layers` times Linear(r -> r)(relu(norm(h))), then Linear(r -> out)(relu(norm(h))).

    Everything is evaluated in float32 at least, whatever the parameters' dtype: bfloat16 tells only 384 of
    the first 511 offsets apart.

    Args:
        width: r, size of the hidden layers.
        layers: how many hidden layers stand between the first and the last.
        out: number of coefficients of one offset.
    """

    def __init__(self, width: int, layers: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(1, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.last = nn.Linear(width, out)

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder is evaluated in: float32, or float64 where its parameters are."""
        return at_least_float32(self.first.weight.dtype)

    @property
    def like(self) -> Tensor:
        """A number of the dtype and on the device that the encoder is evaluated in and on."""
        return torch.empty((), dtype=self.dtype, device=self.first.weight.device)

    def forward(self, offsets: Tensor) -> Tensor:
        """The coefficients of some offsets.

        Args:
            offsets: (n,), whole numbers, not scaled.

        Returns:
            (out, n) in `dtype`: a transform reads one coefficient at all offsets.
        """
        with unrounded(offsets.device):
            weight, bias = self.last.weight.to(self.dtype), self.last.bias.to(self.dtype)
            return torch.addmm(bias[:, None], weight, self.features(offsets).t())

    def beside(self, offsets: Tensor) -> Tensor:
        """What `forward` gives, those of one offset side by side: (n, out)."""
        with unrounded(offsets.device):
            return self._linear(self.last, self.features(offsets))

    def features(self, offsets: Tensor) -> Tensor:
        """What the last layer reads of each offset: (n, r) in `dtype`."""
        hidden = self._linear(self.first, offsets.to(self.dtype)[:, None])
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            hidden = self._linear(layer, F.relu(simple_rms_norm(hidden)))
        return F.relu(simple_rms_norm(hidden))

    @property
    def most(self) -> float:
        """What no coefficient exceeds in size: the last layer reads numbers whose squares sum up to r at most."""
        weight, bias = self.last.weight.detach().to(self.dtype), self.last.bias.detach().to(self.dtype)
        return float((weight.norm(dim=1) * weight.shape[1] ** 0.5 + bias.abs()).max())

    def _linear(self, layer: nn.Linear, hidden: Tensor) -> Tensor:
        return F.linear(hidden, layer.weight.to(self.dtype), layer.bias.to(self.dtype))
