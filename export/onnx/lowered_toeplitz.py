"""A Toeplitz mixer in operators that every ONNX provider has: its transforms as matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.export.onnx.block_transform import (
    Factors,
    Spectrum,
    factors,
    inverse,
    product,
    transform,
)
from remixer.mixers.key_weights import weighed
from remixer.mixers.precision import at_least_float32
from remixer.mixers.toeplitz import ToeplitzMixer
from remixer.mixers.toeplitz_operator import ToeplitzOperator

BLOCK = 32  # coefficients that are added up by one product


class LoweredToeplitz(nn.Module):
    """The numbers of a Toeplitz mixer in eval mode, without an FFT.

    Args:
        mixer: is read, and its encoder, gate and key weights are shared.
        tokens: the length, where it is fixed: what depends on it alone is then computed here, once.
    """

    def __init__(self, mixer: ToeplitzOperator, tokens: int | None) -> None:
        super().__init__()
        self.spec, self.normalise, self.gates = mixer.spec, mixer.normalise, mixer.config.gate
        self.gate, self.key_weights = mixer.gate, mixer.key_weights
        self.mixer: ToeplitzMixer | None = None
        if tokens is None:
            assert isinstance(mixer, ToeplitzMixer)
            self.mixer = mixer
            return
        with torch.no_grad():
            turns = factors(tokens, mixer.encoder.like)
            circular = _circular(mixer.coefficients(tokens), turns, tokens, self.spec.causal)
            for name, factor in zip(Factors._fields, turns, strict=True):
                self.register_buffer(name, factor, persistent=False)
            self.register_buffer("spectrum", torch.stack(transform(circular, turns)), persistent=False)
            if self.normalise:
                sums, itself = row_sums(circular, tokens, self.spec.causal)
                self.register_buffer("sums", sums, persistent=False)
                self.register_buffer("itself", itself, persistent=False)

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """See Mixer.forward."""
        assert value is not None
        T, H, dtype, causal = value.shape[2], self.spec.heads, at_least_float32(value.dtype), self.spec.causal
        tokens = weighed(value, padding, key, self.key_weights)
        sums = itself = None
        if self.mixer is None:
            turns = Factors(*map(self.get_buffer, Factors._fields))
            spectrum = Spectrum(*self.get_buffer("spectrum").unbind(0))
            if self.normalise:
                sums, itself = self.get_buffer("sums"), self.get_buffer("itself")
        else:
            turns = factors(T, self.mixer.encoder.like)
            circular = _coefficients(self.mixer, _offsets(turns, T, causal))
            spectrum = transform(circular, turns)
            if self.normalise:
                sums, itself = row_sums(circular, T, causal)
        mixed = _times(spectrum, tokens.values.to(dtype).transpose(1, 2), turns, H)
        if sums is not None and itself is not None:
            sums, itself = (each.unflatten(-1, (H, -1)) for each in (sums, itself))
            if tokens.weights is None:
                mixed = mixed / sums
            elif tokens.own is not None:
                seen = _times(spectrum, tokens.weights.to(dtype).transpose(1, 2), turns, H)
                mixed = mixed / torch.maximum(seen, tokens.least(itself.transpose(0, 1)).transpose(1, 2))
            else:  # samples that lack tokens have sums of their own
                (lacking,) = torch.where(~tokens.weights.all(2)[:, 0, 0])
                exist = tokens.weights[:, 0, :, 0].index_select(0, lacking).to(dtype)
                seen = _sums(spectrum, exist, turns).unflatten(-1, (H, -1))
                mended = mixed.index_select(0, lacking) / torch.maximum(seen, itself)
                mixed = (mixed / sums).index_put((lacking,), mended)
        mixed = mixed.transpose(1, 2)
        if self.gate is not None:
            operand = query if self.gates == "query" else tokens.value
            assert operand is not None
            mixed = mixed * self.gate(operand)
        return mixed.to(value.dtype)


def _side_by_side(coefficients: Tensor) -> Tensor:
    """(H, E or 1, offsets) to (offsets, H E or H): heads and channels lie side by side, as in a hidden state."""
    return coefficients.flatten(0, 1).transpose(0, 1)


def _times(spectrum: Spectrum, values: Tensor, turns: Factors, heads: int) -> Tensor:
    """The Toeplitz matrices of a spectrum times values (B, T, G or 1, E or 1): (B, T, H, E or 1)."""
    T, G = values.shape[1:3]
    filled = F.pad(values.flatten(2), (0, 0, 0, turns.half - T))
    of_values = (each.unflatten(-1, (G, 1, -1)) for each in transform(filled, turns))
    of_heads = (each.unflatten(-1, (G, heads // G, -1)) for each in spectrum)
    both = product(Spectrum(*of_values), Spectrum(*of_heads))
    mixed = inverse(Spectrum(*(each.flatten(-3) for each in both)), turns)
    return mixed[:, :T].unflatten(-1, (heads, -1))


def _sums(spectrum: Spectrum, exist: Tensor, turns: Factors) -> Tensor:
    """The sums of rows over tokens that exist, (B, T) of 0 and 1: (B, T, H E or H). There may be no sample.

    They stand side by side: onnxruntime refuses a product of no matrices, but not one of no columns.
    """
    B, T = exist.shape
    filled = F.pad(exist, (0, turns.half - T)).transpose(0, 1)
    of_exist = (each[..., None] for each in transform(filled, turns))
    both = product(Spectrum(*of_exist), Spectrum(*(each[..., None, :] for each in spectrum)))
    sums = inverse(Spectrum(*(each.flatten(-2) for each in both)), turns)[:T]
    return sums.unflatten(-1, (B, spectrum.real.shape[-1])).transpose(0, 1)


def _offsets(turns: Factors, tokens: int, causal: bool) -> Tensor:
    """The offset at each place of a circle: those of keys to come stand at the end, beyond the ends is no matter."""
    place = torch.arange(turns.half, device=turns.down.device)
    past = place.clamp(max=tokens - 1)
    return past if causal else torch.cat([past, (place - place[-1:] - 1).clamp(min=1 - tokens)])


def _coefficients(mixer: ToeplitzMixer, offsets: Tensor) -> Tensor:
    """The mixer's coefficients at these offsets, (places, H E or H), made where they are to lie."""
    fade, place = mixer.fade(offsets), offsets[:, None]
    fade = fade[:, None] if fade.dim() == 1 else _side_by_side(fade)
    encoded = mixer.encoder.beside(offsets)
    if not mixer.normalise:
        return mixer.seen(encoded * fade.exp(), place, 0.0)
    logs = mixer.seen(encoded + fade, place, -torch.inf)
    largest = logs.unflatten(0, (-1, BLOCK)).amax(1).amax(0)  # onnxruntime does one step in ten times as long
    return (logs - largest).exp()


def _circular(coefficients: Tensor, turns: Factors, tokens: int, causal: bool) -> Tensor:
    """Coefficients (H, E or 1, offsets) at the places of `_offsets`, 0 beyond the ends: (places, H E or H)."""
    beside, half = _side_by_side(coefficients), turns.half
    if causal:
        return F.pad(beside, (0, 0, 0, half - tokens))
    past, to_come = beside[tokens - 1 :], beside[: tokens - 1]
    return torch.cat([F.pad(past, (0, 0, 0, 2 * half - len(beside))), to_come])


def row_sums(circular: Tensor, tokens: int, causal: bool) -> tuple[Tensor, Tensor]:
    """The sum of each row over all keys (T, n), and what each query gives itself (1, n), never 0.

    Sums within blocks and those of blocks are matrix products: onnxruntime adds up one number after the other.

    Args:
        circular: positive coefficients at the places of `_offsets`, (places, n).
        tokens: T.
        causal: whether there are those of keys to come.
    """
    blocks = circular.unflatten(0, (1 if causal else 2, -1, BLOCK))  # (halves, blocks, BLOCK, n)
    dtype, device, many = circular.dtype, circular.device, blocks.shape[1]
    within = _triangles(torch.arange(BLOCK, device=device), dtype, causal, 1)[:, None] @ blocks
    beyond = _triangles(torch.arange(many, device=device), dtype, causal, 0) @ blocks.sum(2)
    both = (within + beyond[:, :, None]).flatten(0, 2)
    sums = both[:tokens]
    if not causal:
        sums = sums + both[2 * BLOCK * many - tokens :]
    tiny = torch.finfo(dtype).tiny
    return sums.clamp(min=tiny), circular[:1].clamp(min=tiny)


def _triangles(place: Tensor, dtype: torch.dtype, causal: bool, diagonal: int) -> Tensor:
    """Which places come before each, itself included if diagonal is 1, and which behind it: (1 or 2, n, n)."""
    behind = place[:, None] - place
    triangles = [behind > -diagonal]
    if not causal:
        triangles.append(behind < 0)
    return torch.stack(triangles).to(dtype)
