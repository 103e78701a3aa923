"""DualLN: keys and values are normalised, tokens by one LayerNorm and summaries by another (Zhu et al., 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers.precision import at_least_float32


def dual_norm(norm: nn.LayerNorm | None, tokens: Tensor, over: str = "paper") -> Tensor:
    """One of the two LayerNorms of equation 5, or none.

    Args:
        norm: of the G * D entries that a token has in all heads, of D if `over` says so; None for no norm.
        tokens: keys or values, (B, G, S, D).
        over: "per_head" normalises every head by itself, anything else all heads of a token together.

    Returns:
        (B, G, S, D) in the dtype of tokens.
    """
    if norm is None:
        return tokens
    # In float32: sums over many tokens lose their last digits in bfloat16.
    dtype = at_least_float32(tokens.dtype)
    weight, bias, wide = norm.weight.to(dtype), norm.bias.to(dtype), tokens.to(dtype)
    if over == "per_head":
        return F.layer_norm(wide, norm.normalized_shape, weight, bias, norm.eps).to(tokens.dtype)
    flat = F.layer_norm(wide.transpose(1, 2).flatten(2), norm.normalized_shape, weight, bias, norm.eps)
    return flat.unflatten(2, tokens.shape[1::2]).transpose(1, 2).to(tokens.dtype)
