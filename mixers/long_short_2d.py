"""Long-Short attention over the two axes of an image (Zhu et al., 2021)."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from remixer.mixers.errors import MixerConfigError
from remixer.mixers.long_short.dense_reference import Columns, dense_attention, dense_summaries
from remixer.mixers.long_short.dual_norm import dual_norm
from remixer.mixers.long_short.global_tokens import attend_from_global_tokens
from remixer.mixers.long_short.joint_attention import hidden_score, joint_attention
from remixer.mixers.long_short.summaries import pool
from remixer.mixers.long_short.windows_2d import Tiling2d
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec


class LongShort2d(nn.Module):
    """One softmax over summaries of all cells, a square window, and global tokens; linear in the number of cells.

    A query sees the w x w window that it is in and max(w // 2, 1) cells around it: (w + 2 max(w // 2, 1))^2 keys,
    those that lie in the image. Height and width may be anything. As in equation 5 of the paper, keys are normalised
    after they are pooled; the published code does so before as well. Its relative bias on the window is left out.

    Args:
        width: C.
        heads: H, divides width.
        window: w.
        rank: how many summaries; 0 for none.
        dual_norm: two LayerNorms over all heads together, for keys and values of cells and of summaries.
        bias: whether the projections of queries, keys and values have one.
        dropout: probability with which attention weights are dropped in training.

    Raises:
        MixerConfigError: the options don't go together.

    Examples:
        >>> layer = LongShort2d(64, heads=4)
        >>> layer(torch.zeros(2, 15, 20, 64)).shape
        torch.Size([2, 15, 20, 64])
        >>> image, classes = layer(torch.zeros(2, 15, 20, 64), torch.zeros(2, 1, 64))
        >>> classes.shape
        torch.Size([2, 1, 64])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int = 7,
        rank: int = 8,
        dual_norm: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise MixerConfigError(f"LongShort2d: {heads} heads can't share a width of {width}")
        if window < 1 or rank < 0:
            raise MixerConfigError(f"LongShort2d: window must be at least 1, rank at least 0, got {window} and {rank}")
        head_dim = width // heads
        self.spec = AttentionSpec(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            scale=head_dim**-0.5,
            padding=True,
            dropout=dropout,
            source_dim=width,
        )
        self.tiling, self.rank = Tiling2d(window), rank
        self.query, self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, width)
        # Nearly uniform weights, yet no two summaries the same.
        self.pooling = nn.Parameter(torch.empty(heads, width, rank).normal_(std=0.02)) if rank else None
        self.window_norm = nn.LayerNorm(width) if dual_norm else None
        self.summary_norm = nn.LayerNorm(width) if dual_norm and rank else None

    @overload
    def forward(self, hidden: Tensor, global_tokens: None = None, padding: Tensor | None = None) -> Tensor: ...

    @overload
    def forward(
        self, hidden: Tensor, global_tokens: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, hidden: Tensor, global_tokens: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mix the cells.

        Args:
            hidden: (B, height, width, C).
            global_tokens: (B, k, C), such as class tokens, or None. All cells see them; they see themselves, and what
                the layer gave for the cells.
            padding: (B, height, width) bool, True where a cell exists, or None where all do. What doesn't exist has
                no influence on what does; its own outputs mean nothing.

        Returns:
            (B, height, width, C); with global tokens also theirs, (B, k, C).
        """
        height, width = hidden.shape[1:3]
        query, key, value = (each.unflatten(2, (height, width)) for each in self._heads(hidden.flatten(1, 2)))
        near_key, near_value = self._near(key), self._near(value)
        exist = hidden.new_ones(1, height, width, dtype=torch.bool) if padding is None else padding
        cells = self.tiling.exist(exist)  # (B or 1, tiles, span^2)
        tiles = cells.shape[1]
        keys, values, seen = [self.tiling.keys(near_key)], [self.tiling.keys(near_value)], [cells]
        if self.pooling is not None:
            flat = None if padding is None else padding.flatten(1)
            reads = hidden.flatten(1, 2)[:, None]
            far = pool(self.pooling, reads, key.flatten(2, 3), value.flatten(2, 3), flat, None)
            for parts, each in zip((keys, values), far, strict=True):
                parts.append(self._far(each)[:, None].expand(-1, tiles, -1, -1, -1))
            seen.append(exist.flatten(1).any(1)[:, None, None].expand(-1, tiles, self.rank))
        own: list[Tensor] = []
        if global_tokens is not None:
            own_query, own_key, own_value = self._heads(global_tokens)
            own = [own_query, self._near(own_key), self._near(own_value)]
            for parts, each in zip((keys, values), own[1:], strict=True):
                parts.append(each[:, None].expand(-1, tiles, -1, -1, -1))
            seen.append(cells.new_ones(cells.shape[0], tiles, own_key.shape[2]))
        dropout = self.spec.dropout if self.training else 0.0
        mixed = _in_tiles(self.tiling.queries(query), keys, values, seen, self.spec, dropout)
        cells_mixed = self.tiling.untiled(mixed, height, width).flatten(2, 3)
        image = self._joined(cells_mixed).unflatten(1, (height, width))
        if global_tokens is None:
            return image
        flat = None if padding is None else padding.flatten(1)
        second = attend_from_global_tokens(own[0], own[1], own[2], cells_mixed, None, flat, self.spec, dropout)
        return image, self._joined(second)

    def reference(
        self, hidden: Tensor, global_tokens: Tensor | None = None, padding: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`forward` by a dense matrix of scores: the same arguments, values and gradients."""
        height, width = hidden.shape[1:3]
        wide, tiling, scale = at_least_float32(hidden.dtype), self.tiling, self.spec.scale
        query, key, value = (each.to(wide) for each in self._heads(hidden.flatten(1, 2)))
        exist = torch.ones_like(hidden[..., 0], dtype=torch.bool) if padding is None else padding
        place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(hidden.device)
        first = place[:, None] // tiling.window * tiling.window - tiling.margin
        window = ((place >= first) & (place < first + tiling.span)).all(-1)  # (cells, cells)
        columns: list[Columns] = [(self._near(key), self._near(value), exist.flatten(1)[:, None] & window)]
        if self.pooling is not None:
            source, pooling = hidden.flatten(1, 2)[:, None].to(wide), self.pooling.to(wide)
            there = exist.flatten(1)
            columns.append(
                dense_summaries(pooling, source, key, value, there, lambda k, v: (self._far(k), self._far(v)))
            )
        if global_tokens is None:
            mixed = dense_attention(query, columns, scale)
            return self._joined(mixed.to(hidden.dtype)).unflatten(1, (height, width))
        own, own_key, own_value = (each.to(wide) for each in self._heads(global_tokens))
        seen = exist.new_ones(exist.shape[0], 1, own.shape[2])
        first_tokens = (self._near(own_key), self._near(own_value), seen)
        mixed = dense_attention(query, [*columns, first_tokens], scale)
        second = dense_attention(own, [first_tokens, (mixed, mixed, exist.flatten(1)[:, None])], scale)
        image, classes = (self._joined(each.to(hidden.dtype)) for each in (mixed, second))
        return image.unflatten(1, (height, width)), classes

    def _heads(self, hidden: Tensor) -> list[Tensor]:
        """Queries, keys and values of (B, T, C), each (B, H, T, D)."""
        layers = (self.query, self.key, self.value)
        return [layer(hidden).unflatten(-1, (self.spec.heads, -1)).transpose(1, 2) for layer in layers]

    def _joined(self, mixed: Tensor) -> Tensor:
        """(B, H, T, D) to (B, T, C)."""
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _near(self, tokens: Tensor) -> Tensor:
        """Keys or values of cells, normed: (B, H, ..., D)."""
        return dual_norm(self.window_norm, tokens.flatten(2, -2)).reshape(tokens.shape)

    def _far(self, tokens: Tensor) -> Tensor:
        """Keys or values of summaries, normed: (B, H, rank, D)."""
        return dual_norm(self.summary_norm, tokens)


def _in_tiles(
    query: Tensor, keys: list[Tensor], values: list[Tensor], seen: list[Tensor], spec: AttentionSpec, dropout: float
) -> Tensor:
    """One softmax over all columns of every tile, 0 where they are all hidden.

    Args:
        query: (B, tiles, H, T, D).
        keys: each (B, tiles, H, columns, D).
        values: each (B, tiles, H, columns, D).
        seen: each (B or 1, tiles, columns) bool.
        spec: gives the scale.
        dropout: probability with which weights are dropped.

    Returns:
        (B, tiles, H, T, D).
    """
    B, tiles = query.shape[:2]
    visible = torch.cat(seen, 2)
    bias = query.new_zeros(()).masked_fill(~visible, hidden_score(query.dtype))[:, :, None, None]
    rows, key, value = (each.flatten(0, 1) for each in (query, torch.cat(keys, 3), torch.cat(values, 3)))
    mixed = joint_attention(rows, key, value, bias.expand(B, -1, -1, -1, -1).flatten(0, 1), None, 0, spec, dropout)
    return mixed.unflatten(0, (B, tiles)).masked_fill(~visible.any(2)[:, :, None, None, None], 0.0)
