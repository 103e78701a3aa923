"""Linear attention (Katharopoulos et al., 2020, equation 7): a mixer of one's own.

P = phi(Q) phi(K)^T with rows divided by their sum, phi(x) = elu(x) + 1. The product is taken right to left, so nothing
of size T x S is made.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers import AttentionSpec, Mixer, MixerConfig, Order, Unsupported


@dataclass(frozen=True)
class LinearAttentionConfig(MixerConfig):
    """Options: `eps` keeps rows that see nothing from dividing by zero."""

    eps: float = 1e-6

    def __post_init__(self) -> None:
        self.require(self.eps > 0, f"eps must be positive, got {self.eps}")


class LinearAttention(Mixer):
    """Replaces the softmax by a product of positive features."""

    Config = LinearAttentionConfig
    operands = ("query", "key", "value", "padding")

    @classmethod
    def supports(cls, spec: AttentionSpec, config: LinearAttentionConfig) -> Unsupported | None:
        """Causal attention would need a running sum, which this example leaves out."""
        if spec.causal or spec.windowed:
            return Unsupported("'linear_attention' sees all keys, this attention is causal or has a window")
        return None

    @property
    def order(self) -> Order:
        """Linear in the length."""
        return "n"

    def _features(self, tensor: Tensor) -> Tensor:
        return F.elu(tensor * self.spec.scale**0.5) + 1

    def forward(self, query, key, value, *, padding=None, bias=None, source=None):
        """(B, H, T, E) from query (B, H, T, D), key (B, G, S, D), value (B, G, S, E); see Mixer.forward."""
        query, key = self._features(query), self._features(key)
        if padding is not None:
            key = key * padding[:, None, :, None]
        summary = (key.transpose(-1, -2) @ value).repeat_interleave(self.spec.groups, 1)
        total = key.sum(2).repeat_interleave(self.spec.groups, 1)
        return (query @ summary) / ((query @ total[..., None]) + self.config.eps)

    def reference(self, query, key, value, *, padding=None, bias=None, source=None):
        """The same with P written out."""
        key, value = (tensor.repeat_interleave(self.spec.groups, 1) for tensor in (key, value))
        weights = self._features(query) @ self._features(key).transpose(-1, -2)
        if padding is not None:
            weights = weights * padding[:, None, None, :]
        return torch.einsum("bhts,bhse->bhte", weights / (weights.sum(-1, keepdim=True) + self.config.eps), value)
