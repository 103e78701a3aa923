"""One softmax over all that a tile of queries sees: summaries, sinks and window together.

Transformer-LS (Zhu et al., 2021), equation 5. N counts the tiles of all samples and key/value heads, c the columns
that a tile sees; the groups are the query heads that read one key/value head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import workspace


def hidden_score(dtype: torch.dtype) -> float:
    """What is added to the score of a column that a query may not see.

    Finite, so that a row that sees nothing has gradients; half of the least number, so that sums stay finite.
    """
    return torch.finfo(dtype).min / 2


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


def joint_attention_in_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    patches: Sequence[tuple[slice, slice, Tensor]],
    added: Tensor | None,
    summaries: int,
    spec: AttentionSpec,
) -> Tensor:
    """The same in place, without gradients, for scores that fit in cache: faster than the fused kernel there.

    Args:
        query: (B, G, tiles, groups, T, D), or some of the samples and heads.
        key: (B, G, tiles, c, D).
        value: (B, G, tiles, c, E).
        patches: some tiles, some columns, and what is added to their scores, broadcastable to
            (B, G, tiles, groups, T, columns).
        added: broadcastable to (B, G, tiles, groups, T, summaries), added to these too, or None.
        summaries: how many of the first columns are summaries.
        spec: gives scale and softcap.

    Returns:
        (B, G, tiles, groups, T, E).
    """
    shape, columns = query.shape[:-1], key.shape[-2]
    scores = workspace.take("scores", (*shape, columns), query.dtype)
    flat = scores.view(-1, shape[3] * shape[4], columns)  # a key/value head's readers in one product
    rows, keys = query.reshape(*flat.shape[:2], -1), key.flatten(0, 2).transpose(1, 2)
    if spec.softcap is None:
        flat.baddbmm_(rows, keys, beta=0, alpha=spec.scale)
    else:
        flat.baddbmm_(rows, keys, beta=0, alpha=spec.scale / spec.softcap)
        scores.tanh_().mul_(spec.softcap)
    for tiles, seen, bias in patches:
        scores[:, :, tiles, :, :, seen].add_(bias)
    if added is not None:
        scores[..., :summaries].add_(added)
    torch.softmax(scores, -1, out=scores)
    return torch.bmm(flat, value.flatten(0, 2)).view(*shape, -1)
