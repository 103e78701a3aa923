"""The first tokens of a sequence, which pretrained decoders lean on: attention sinks (Xiao et al., 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


def first_existing(exist: Tensor, sinks: int) -> tuple[Tensor, Tensor]:
    """Where the first tokens stand that exist, in every sample for itself.

    Args:
        exist: (B, T) bool.
        sinks: how many to find.

    Returns:
        (B, sinks) positions, and bool: whether there are that many.
    """
    before = exist.long().cumsum(1)
    # As many tokens as come before it: a search, which ONNX doesn't have, would find no more.
    position = torch.stack([(before < nth).sum(1) for nth in range(1, sinks + 1)], 1)
    return position.clamp(max=exist.shape[1] - 1), position < exist.shape[1]


def gather_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """(B, G, T, D) at (B or 1, n) positions: (B, G, n, D)."""
    B, G, _, D = tokens.shape
    return tokens.gather(2, positions[:, None, :, None].expand(B, G, -1, D))
