"""One softmax over all that a tile of queries sees: summaries, sinks and window together.

Transformer-LS (Zhu et al., 2021), equation 5. N counts the tiles of all samples, c the columns a tile sees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.softmax import repeat_heads
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import workspace


def hidden_score(dtype: torch.dtype) -> float:
    """What is added to the score of a column that a query may not see.

    Finite, so that a row that sees nothing has gradients; half of the least number, so that sums stay finite.
    """
    return torch.finfo(dtype).min / 2


def joint_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, spec: AttentionSpec, dropout: float
) -> Tensor:
    """softmax(softcap(scale * query key^T) + bias) value, with 4-D operands that can be differentiated.

    Args:
        query: (N, H, T, D).
        key: (N, G, c, D).
        value: (N, G, c, E).
        bias: broadcastable to (N, H, T, c).
        spec: gives scale, softcap and head counts.
        dropout: probability with which weights are dropped.

    Returns:
        (N, H, T, E).
    """
    key, value = repeat_heads(key, spec.groups), repeat_heads(value, spec.groups)
    if spec.softcap is None:
        mask = bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=spec.scale)
    scores = spec.softcap * torch.tanh((query @ key.transpose(-1, -2)) * (spec.scale / spec.softcap))
    weights = torch.softmax(scores + bias, -1).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def joint_attention_in_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    added: Tensor | None,
    spec: AttentionSpec,
) -> Tensor:
    """The same in place, without gradients, for scores that fit in cache: faster than the fused kernel there.

    Args:
        query: (N, H, T, D), or some of the heads.
        key: (N, G, c, D), or those which these heads read.
        value: (N, G, c, E).
        bias: broadcastable to (N, H, T, c).
        added: (H, 1, c), added to bias, or None.
        spec: gives scale and softcap.

    Returns:
        (N, H, T, E).
    """
    (N, H, T, D), (_, G, columns, E) = query.shape, value.shape
    scores = workspace.take("scores", (N, H, T, columns), query.dtype)
    flat = scores.view(N * G, -1, columns)  # a key/value head's readers in one product
    rows, keys = query.reshape(N * G, -1, D), key.reshape(N * G, columns, D).transpose(1, 2)
    if spec.softcap is None:
        # The bias is written first and the product accumulated onto it: one pass over the scores less.
        scores.copy_(bias) if added is None else torch.add(bias.expand_as(scores), added, out=scores)
        flat.baddbmm_(rows, keys, alpha=spec.scale)
    else:
        flat.baddbmm_(rows, keys, beta=0, alpha=spec.scale / spec.softcap)
        scores.tanh_().mul_(spec.softcap).add_(bias if added is None else bias + added)
    torch.softmax(scores, -1, out=scores)
    return torch.bmm(flat, value.reshape(N * G, columns, E)).view(N, H, T, E)
