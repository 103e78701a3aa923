"""Small models that benchmarks train from scratch: Transformer layers with any mixer, TNN layers, and heads on both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers import AttentionSpec, MixerConfig, mixer_of


class TransformerBlock(nn.Module):
    """A pre-norm Transformer layer whose attention is the mixer of a config.

    Args:
        width: C.
        heads: H.
        config: of the mixer.
        causal: token t sees tokens 0..t only.
        inner: channels inside the MLP; None is four times as many as outside.
    """

    def __init__(
        self, width: int, heads: int, config: MixerConfig, *, causal: bool = False, inner: int | None = None
    ) -> None:
        super().__init__()
        size, inner = width // heads, inner or 4 * width
        spec = AttentionSpec(
            heads=heads,
            kv_heads=heads,
            head_dim=size,
            value_dim=size,
            scale=size**-0.5,
            causal=causal,
            padding=not causal,
            source_dim=width,
        )
        self.mixer = mixer_of(config).from_attention(spec, config)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, hidden: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, C) and (B, T) bool to (B, T, C)."""
        source = self.norm(hidden)
        query, key, value = self.qkv(source).unflatten(-1, (3, self.mixer.spec.heads, -1)).permute(2, 0, 3, 1, 4)
        operands = {"query": query, "key": key, "value": value, "padding": padding, "source": source}
        mixed = self.mixer(**{name: operands[name] for name in self.mixer.operands})
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.mlp_norm(hidden))


class Model(nn.Module):
    """Embedding, layers, norm and a linear head, on every token or on their mean.

    Args:
        vocabulary: how many tokens there are.
        width: C.
        blocks: the layers, (B, T, C) and padding to (B, T, C).
        norm: the last one.
        outputs: how many numbers the head gives.
        positions: entries of a learned table of absolute positions, or 0 for none. Longer inputs raise.
        pooled: one output for the mean of all tokens, in place of one for every token.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        outputs: int,
        *,
        positions: int = 0,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width) if positions else None
        for table in (self.embedding, self.positions):
            if table is not None:
                nn.init.normal_(table.weight, std=width**-0.5)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head, self.pooled = norm, nn.Linear(width, outputs), pooled

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T) ids and (B, T) bool to (B, T, outputs), or (B, outputs) if pooled."""
        hidden = self.embedding(ids)
        if self.positions is not None:
            hidden = hidden + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            hidden = block(hidden, padding)
        hidden = self.norm(hidden)
        if self.pooled:
            exist = torch.ones_like(ids, dtype=torch.bool) if padding is None else padding
            weights = F.normalize(exist.to(hidden.dtype), p=1.0, dim=1)
            hidden = torch.einsum("bt,btc->bc", weights, hidden)
        return self.head(hidden)

    def size(self) -> int:
        """How many parameters there are, the table of positions not counted."""
        table = 0 if self.positions is None else self.positions.weight.numel()
        return sum(parameter.numel() for parameter in self.parameters()) - table
