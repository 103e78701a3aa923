"""One softmax over all that a tile of queries sees: summaries, sinks and window together.

Transformer-LS (Zhu et al., 2021), equation 5. N counts the tiles of all samples and key/value heads, c the columns
that a tile sees; the groups are the query heads that read one key/value head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.spec import AttentionSpec


def hidden_score(dtype: torch.dtype) -> float:
    """What is added to the score of a column that a query may not see.

    Finite, so that a row that sees nothing has gradients; half of the least number, so that sums stay finite.
    """
    return torch.finfo(dtype).min / 2


def silenced(mixed: Tensor, bias: Tensor) -> Tensor:
    """0 where a row of the bias hides every column."""
    return mixed.masked_fill(~(bias > hidden_score(bias.dtype)).any(-1, keepdim=True), 0.0)


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    added: Tensor | None,
    summaries: int,
    spec: AttentionSpec,
    dropout: float,
) -> Tensor:
    """softmax(softcap(scale * query key^T) + bias) value, with 4-D operands that can be differentiated.

    Args:
        query: (N, H, T, D).
        key: (N, G, c, D).
        value: (N, G, c, E).
        bias: broadcastable to (N, H, T, c); as long as it is the same for all heads, nothing of the size
            (N, H, T, c) is made.
        added: (H,), added to the scores of summaries, or None.
        summaries: how many of the first columns are summaries.
        spec: gives scale and softcap.
        dropout: probability with which weights are dropped.

    Returns:
        (N, H, T, E).
    """
    key, value = (each[:, :, None].expand(-1, -1, spec.groups, -1, -1).flatten(1, 2) for each in (key, value))
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh((query @ key.transpose(-1, -2)) * (spec.scale / spec.softcap)) + bias
        if added is not None:
            scores = scores + F.pad(
                added.to(bias.dtype)[:, None, None].expand(-1, 1, summaries), (0, key.shape[2] - summaries)
            )
        return F.dropout(torch.softmax(scores, -1).to(value.dtype), dropout) @ value
    size = value.shape[-1]
    if added is not None:
        # As one more dimension of queries and keys: the fused kernel takes no mask that needs gradients.
        shares = (added / spec.scale).to(query.dtype)[:, None, None].expand(query.shape[0], -1, query.shape[2], 1)
        query = torch.cat([query, shares], -1)
        far = torch.arange(key.shape[2], device=key.device) < summaries
        key = torch.cat([key, far.to(key.dtype)[:, None].expand(*key.shape[:2], -1, 1)], -1)
        value = F.pad(value, (0, max(0, query.shape[-1] - size)))  # nor sizes that differ
    return F.scaled_dot_product_attention(query, key, value, bias, dropout_p=dropout, scale=spec.scale)[..., :size]
