"""The published algorithms as their formulas are usually written down, to be compared with.

Nothing is kept between calls, and every intermediate is there as a whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers import LongShortMixer, ToeplitzMixer


class StraightforwardToeplitz(nn.Module):
    """The Toeplitz operator of TNN (Qin et al., 2023, section 3), with the weights of a mixer.

    Args:
        mixer: of the published form (normalise=False), without a gate.
    """

    def __init__(self, mixer: ToeplitzMixer) -> None:
        super().__init__()
        self.encoder, self.spec, self.decay = mixer.encoder, mixer.spec, mixer.config.decay or 1.0

    def _coefficients(self, offsets: Tensor) -> Tensor:
        hidden = self.encoder.first(offsets[:, None].float())
        for layer in (*self.encoder.hidden, self.encoder.last):
            normed = hidden / (hidden.norm(dim=-1, keepdim=True) * hidden.shape[-1] ** -0.5 + 1e-8)
            hidden = layer(F.relu(normed))
        return hidden.unflatten(1, (self.spec.heads, -1)).permute(1, 2, 0)  # (H, E, offsets)

    def forward(self, value: Tensor) -> Tensor:
        """(B, H, T, E), not padded, to the same."""
        T = value.shape[2]
        ahead = torch.arange(1, T, device=value.device)
        fade = self.decay**ahead
        zero = self._coefficients(torch.zeros(1, device=value.device))
        past = self._coefficients(ahead) * fade
        future = torch.zeros_like(past) if self.spec.causal else self._coefficients(-ahead) * fade
        circulant = torch.cat([zero, past, zero, future.flip(-1)], -1)
        product = torch.fft.rfft(circulant, 2 * T) * torch.fft.rfft(value.transpose(2, 3), 2 * T)
        return torch.fft.irfft(product, 2 * T)[..., :T].transpose(2, 3)


class StraightforwardLongShort(nn.Module):
    """Bidirectional Long-Short attention (Zhu et al., 2021, section 3), with the weights of a mixer.

    Args:
        mixer: of the published form: counted=False, dual_norm="paper", project_from="source", no sinks.
    """

    def __init__(self, mixer: LongShortMixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, query: Tensor, key: Tensor, value: Tensor, source: Tensor) -> Tensor:
        """(B, H, T, D) each, T a multiple of the window, and source (B, T, C), to (B, H, T, D)."""
        mixer, spec, window = self.mixer, self.mixer.spec, self.mixer.config.window
        P = torch.softmax(source[:, None] @ mixer.pooling, 2)  # (B, H, T, rank)
        far = [self._normed(mixer.summary_norm, P.transpose(2, 3) @ tokens) for tokens in (key, value)]
        near = [self._windows(self._normed(mixer.window_norm, tokens), window) for tokens in (key, value)]
        rows = query.unflatten(2, (-1, window)) * spec.scale
        T = query.shape[2]
        place = torch.arange(-(window // 2), T + window // 2, device=query.device).unfold(0, 2 * window, window)
        scores = rows @ near[0].transpose(3, 4)
        scores = scores.masked_fill(((place < 0) | (place >= T))[:, None], -torch.inf)
        both = torch.cat([rows @ far[0][:, :, None].transpose(3, 4), scores], -1)
        weights = torch.softmax(both, -1)
        rank = far[0].shape[2]
        mixed = weights[..., :rank] @ far[1][:, :, None] + weights[..., rank:] @ near[1]
        return mixed.flatten(2, 3)

    def _windows(self, tokens: Tensor, window: int) -> Tensor:
        """(B, H, T, D) to (B, H, segments, 2 window, D)."""
        padded = F.pad(tokens, (0, 0, window // 2, window // 2))
        return padded.unfold(2, 2 * window, window).transpose(3, 4)

    def _normed(self, norm: nn.Module, tokens: Tensor) -> Tensor:
        flat = norm(tokens.transpose(1, 2).flatten(2))
        return flat.unflatten(2, (tokens.shape[1], -1)).transpose(1, 2)
