"""Long-Short attention as a layer to train from scratch (Zhu et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remixer.mixers.errors import MixerConfigError
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.dense_reference import Columns, dense_attention, dense_summaries
from remixer.mixers.long_short.global_tokens import attend_from_global_tokens, mix_with_global_tokens
from remixer.mixers.long_short.mixer import LongShortMixer
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec

# What was published: for Long Range Arena, and for language models, whose memory holds every segment.
BIDIRECTIONAL = LongShort(window=8, rank=32, sinks=0, counted=False, dual_norm="paper", project_from="source")
CAUSAL = LongShort(
    window=512, segment=16, rank=1, memory=None, sinks=0, counted=False, dual_norm="paper", project_from="source"
)


class LongShortAttention(nn.Module):
    """W_o softmax(q [LN_G(P^T K); LN_L(K_window)]^T / sqrt(D)) [LN_G(P^T V); LN_L(V_window)], per head.

    This is equation 5 of the paper, P being a softmax over the tokens of what W_P reads from the layer's input.
    Where the published code differs, it normalises keys before it pools them too if bidirectional; if causal, its
    windows start anywhere and its queries see the summaries of all segments before their own, so that some tokens are
    seen twice, where here a window starts with a segment and summaries end before it. A window of 1 is the token
    itself, not its neighbours too. Positions are the model's own business.

    Args:
        width: C.
        heads: H, divides width.
        config: window, rank and so on; None is what was published: `BIDIRECTIONAL` or `CAUSAL` of this module.
        causal: token t sees tokens 0..t only. With the published memory of all segments, time grows as
            T^2 / segment; a number or "dyadic" as memory makes it linear, or log-linear.
        global_tokens: so many tokens, the first of every sequence that exist, are seen by all and see all: other
            tokens have them beside summaries and window, which don't hold them; they attend to themselves and to
            what this gave for the others.
        dropout: probability with which attention weights are dropped in training.
        bias: whether the four projections have one.

    Raises:
        MixerConfigError: the options don't go together.

    Examples:
        >>> layer = LongShortAttention(64, heads=4, global_tokens=1)
        >>> layer(torch.zeros(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        config: LongShort | None = None,
        *,
        causal: bool = False,
        global_tokens: int = 0,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        config = config or (CAUSAL if causal else BIDIRECTIONAL)
        _check(width, heads, config, causal, global_tokens)
        head_dim = width // heads
        spec = AttentionSpec(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            scale=head_dim**-0.5,
            causal=causal,
            padding=True,
            dropout=dropout,
            source_dim=width,
        )
        self.global_tokens = global_tokens
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.mixer = LongShortMixer(spec, config)

    def forward(self, hidden: Tensor, padding: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            hidden: (B, T, C).
            padding: (B, T) bool, True where a token exists, or None where all do. What doesn't exist has no
                influence on what does; its own outputs mean nothing.

        Returns:
            (B, T, C).
        """
        if self.global_tokens == 0:
            query, key, value = self._heads(hidden)
            return self._joined(self.mixer(query, key, value, padding=padding, source=hidden))
        if padding is None:
            return self._joined(self._with_global_tokens(hidden, None))
        order = global_tokens_first(padding, self.global_tokens)
        mixed = self._with_global_tokens(_ordered(hidden, order), padding.gather(1, order))
        return _ordered(self._joined(mixed), order.argsort(1))

    def reference(self, hidden: Tensor, padding: Tensor | None = None) -> Tensor:
        """`forward` by dense matrices of scores: the same arguments, values and gradients."""
        if self.global_tokens == 0:
            query, key, value = self._heads(hidden)
            return self._joined(self.mixer.reference(query, key, value, padding=padding, source=hidden))
        exist = torch.ones_like(hidden[..., 0], dtype=torch.bool) if padding is None else padding
        order = global_tokens_first(exist, self.global_tokens)
        mixed = self._with_global_tokens_densely(_ordered(hidden, order), exist.gather(1, order))
        return _ordered(self._joined(mixed.to(hidden.dtype)), order.argsort(1))

    def _with_global_tokens(self, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """(B, T, C), the global tokens first, to (B, H, T, D)."""
        k = min(self.global_tokens, hidden.shape[1])
        query, key, value = self._heads(hidden)
        seen_key, seen_value = self.mixer.near(key[:, :, :k]), self.mixer.near(value[:, :, :k])
        seen, exist = (None, None) if padding is None else (padding[:, :k], padding[:, k:])
        others = query[:, :, k:]
        if others.shape[2]:
            rest = (others, key[:, :, k:], value[:, :, k:], hidden[:, k:])
            others = mix_with_global_tokens(self.mixer, *rest, exist, seen_key, seen_value, seen)
        spec, dropout = self.mixer.spec, self.mixer.spec.dropout if self.training else 0.0
        own = query[:, :, :k]
        first = attend_from_global_tokens(own, seen_key, seen_value, others, seen, exist, spec, dropout)
        return torch.cat([first, others], 2)

    def _with_global_tokens_densely(self, hidden: Tensor, padding: Tensor) -> Tensor:
        """The same, in float32 at least."""
        k, (_, T, _) = self.global_tokens, hidden.shape
        wide = at_least_float32(hidden.dtype)
        mixer, config, scale = self.mixer, self.mixer.config, self.mixer.spec.scale
        query, key, value = (each.to(wide) for each in self._heads(hidden))
        near_key, near_value = mixer.near(key), mixer.near(value)
        place = torch.arange(T - min(k, T), device=hidden.device)
        first = place[:, None] // config.window * config.window
        half = config.window // 2
        window = (place >= first - half) & (place < first + config.window + half)
        seen, exist = padding[:, None, :k], padding[:, k:]
        first_tokens: Columns = (near_key[:, :, :k], near_value[:, :, :k], seen)
        columns = [first_tokens, (near_key[:, :, k:], near_value[:, :, k:], exist[:, None] & window)]
        if mixer.pooling is not None and k < T:
            reads, rest = (hidden[:, k:], (key[:, :, k:], value[:, :, k:]))
            source = reads[:, None] if config.project_from == "source" else rest[0]
            pooling = mixer.pooling.to(wide)
            columns.append(dense_summaries(pooling, source.to(wide), *rest, exist, mixer.as_seen))
        others = dense_attention(query[:, :, k:], columns, scale)
        second = dense_attention(query[:, :, :k], [first_tokens, (others, others, exist[:, None])], scale)
        return torch.cat([second, others], 2)

    def _heads(self, hidden: Tensor) -> list[Tensor]:
        """Queries, keys and values of (B, T, C), each (B, H, T, D)."""
        heads = self.mixer.spec.heads
        layers = (self.query, self.key, self.value)
        return [layer(hidden).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in layers]

    def _joined(self, mixed: Tensor) -> Tensor:
        """(B, H, T, D) to (B, T, C)."""
        return self.out(mixed.transpose(1, 2).flatten(2))


def global_tokens_first(exist: Tensor, count: int) -> Tensor:
    """(B, T), the order in which the first `count` existing tokens come first, then all others as they stand."""
    first = exist & (exist.long().cumsum(1) <= count)
    return torch.argsort(first.logical_not().to(torch.uint8), stable=True, dim=1)


def _ordered(hidden: Tensor, order: Tensor) -> Tensor:
    """(B, T, C) with its tokens in another order, (B, T)."""
    return hidden.gather(1, order[..., None].expand_as(hidden))


def _check(width: int, heads: int, config: LongShort, causal: bool, global_tokens: int) -> None:
    if heads < 1 or width % heads or width < 1:
        raise MixerConfigError(f"LongShortAttention: {heads} heads can't share a width of {width}")
    if global_tokens < 0:
        raise MixerConfigError(f"LongShortAttention: global_tokens can't be negative, got {global_tokens}")
    if global_tokens == 0:
        return
    if causal:
        raise MixerConfigError("LongShortAttention: global tokens see the whole sequence, which causal=True forbids")
    for name in ("sinks", "retrieve", "counted"):
        if getattr(config, name):
            raise MixerConfigError(f"LongShortAttention: global tokens don't go with {name}={getattr(config, name)}")
