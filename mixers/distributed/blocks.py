"""Attention to one block of keys at a time: what each block gives, and how blocks are merged into the whole.

Milakov & Gimelshein (2018) give the running softmax, Dao et al. (2022, section 3.1) its use for attention, Liu et al.
(2023, Ring Attention) its use between devices. All of it is in float32 at least, whatever the tensors' dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten
ROWS = 1024  # how many queries at a time see a block, where scores are written out


class Scoring(NamedTuple):
    """How scores are made.

    Attributes:
        scale: factor on the products.
        softcap: c in c * tanh(scores / c), or None.
    """

    scale: float
    softcap: float | None


class Found(NamedTuple):
    """What some queries found in the keys so far.

    Attributes:
        out: (B, H, n, E), the mean of the values, by their weights.
        lse: (B, H, n), the logarithm of the sum of the exponentials of the scores; -inf where no key was seen.
    """

    out: Tensor
    lse: Tensor


def nothing(query: Tensor, value: Tensor) -> Found:
    """Before the first block: query (B, H, n, D), value (B, G, m, E)."""
    B, H, n, _ = query.shape
    return Found(query.new_zeros(B, H, n, value.shape[-1]), query.new_full((B, H, n), -torch.inf))


def merged(one: Found, other: Found) -> Found:
    """What was found in two blocks together; the first one's memory is used again."""
    lse = torch.logaddexp(one.lse, other.lse)
    theirs = torch.exp(other.lse - lse).nan_to_num(0.0)[..., None]
    return Found(one.out.lerp_(other.out, theirs), lse)


def attend_block(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scoring: Scoring, *, causal: bool = False
) -> Found:
    """What queries find in a block of keys.

    Args:
        query: (B, H, n, D).
        key: (B, G, m, D).
        value: (B, G, m, E).
        mask: broadcastable to (B, H, n, m), added to the scores, -inf where a key is hidden; or None.
        scoring: how scores are made.
        causal: these are the queries' own tokens, and none sees those after it; mask must be None.
    """
    if _fused(query, value, scoring):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            query, *_for_all_heads(query, key, value), 0.0, causal, attn_mask=mask, scale=scoring.scale
        )
        seen = None if mask is None else (mask > -torch.inf).any(-1).expand_as(lse)
        return Found(out, lse if seen is None else lse.masked_fill(~seen, -torch.inf))
    mask = _triangle(query) if causal else mask
    found = [
        _attend_eagerly(query.narrow(2, start, count), key, value, part, scoring)
        for start, count, part in _by_rows(query.shape[2], mask)
    ]
    return Found(torch.cat([each.out for each in found], 2), torch.cat([each.lse for each in found], 2))


class Gradients(NamedTuple):
    """Of the loss, by what a block was given: of a mask only where it was asked for."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


def block_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    whole: Found,
    scoring: Scoring,
    *,
    causal: bool = False,
    of_mask: bool = False,
) -> Gradients:
    """What a block of keys contributes to the gradients.

    Args:
        grad: (B, H, n, E), of the loss by what all blocks together gave.
        query: see `attend_block`.
        key: see there.
        value: see there.
        mask: see there.
        whole: what all blocks together gave.
        scoring: how scores are made.
        causal: see there.
        of_mask: whether the gradient of the mask is wanted.
    """
    if not of_mask and _fused(query, value, scoring):
        keys, values = _for_all_heads(query, key, value)
        # Rows that saw nothing have no largest score to subtract; whatever it is, their weights are zero.
        lse = whole.lse.masked_fill(whole.lse == -torch.inf, 0.0)
        of_query, of_keys, of_values = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, keys, values, whole.out, lse, 0.0, causal, attn_mask=mask, scale=scoring.scale
        )
        of_key, of_value = (each.unflatten(1, (key.shape[1], -1)).sum(2) for each in (of_keys, of_values))
        return Gradients(of_query, of_key, of_value, None)
    mask, parts = _triangle(query) if causal else mask, []
    for start, count, part in _by_rows(query.shape[2], mask):
        asking, asked, out, lse = (each.narrow(2, start, count) for each in (query, grad, *whole))
        scores, capped = _scores(asking, key, part, scoring)
        weights = torch.exp(scores - lse[..., None]).nan_to_num(0.0)
        parts.append(_by_weights(asked, asking, out, key, value, weights, capped, scoring))
    return _together(parts, of_mask=of_mask)


def _triangle(query: Tensor) -> Tensor:
    """(1, 1, n, n), which hides what comes after each token."""
    n = query.shape[2]
    return query.new_full((n, n), -torch.inf).triu(1)[None, None]


def _fused(query: Tensor, value: Tensor, scoring: Scoring) -> bool:
    """Whether torch's fused kernel takes these."""
    return query.device.type == "cpu" and scoring.softcap is None and query.shape[-1] == value.shape[-1]


def _for_all_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _by_rows(queries: int, mask: Tensor | None) -> list[tuple[int, int, Tensor | None]]:
    """Pieces of rows: the first, how many, and their mask."""
    found = []
    for start in range(0, queries, ROWS):
        count = min(ROWS, queries - start)
        part = mask if mask is None or mask.shape[-2] == 1 else mask.narrow(-2, start, count)
        found.append((start, count, part))
    return found


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """The scores (B, H, n, m), and tanh of what they were before the cap, where there is one."""
    G = key.shape[1]
    scores = (query.unflatten(1, (G, -1)) @ key[:, :, None].transpose(-1, -2)).flatten(1, 2) * scoring.scale
    capped = None
    if scoring.softcap is not None:
        capped = torch.tanh(scores / scoring.softcap)
        scores = scoring.softcap * capped
    return scores if mask is None else scores + mask, capped


def _attend_eagerly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scoring: Scoring) -> Found:
    scores, _ = _scores(query, key, mask, scoring)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse[..., None]).nan_to_num(0.0)
    mixed = weights.unflatten(1, (key.shape[1], -1)) @ value[:, :, None]
    return Found(mixed.flatten(1, 2), lse)


def evenly_gradients(
    grad: Tensor, query: Tensor, out: Tensor, key: Tensor, value: Tensor, weight: Tensor, scoring: Scoring
) -> Gradients:
    """What a block of keys contributes to the gradients of queries that give all of them the same weight.

    So do those that see nothing where a mask adds the lowest number: nothing of their scores is left, yet autograd goes
    on through the sum.

    Args:
        grad: (B, H, n, E), of the loss by what they give, zero for other queries.
        query: (B, H, n, D).
        out: (B, H, n, E), what they give.
        key: (B, G, m, D).
        value: (B, G, m, E).
        weight: (m,), of each key.
        scoring: how scores are made.
    """
    parts = []
    for start, count, _ in _by_rows(query.shape[2], None):
        asking, asked, given = (each.narrow(2, start, count) for each in (query, grad, out))
        _, capped = _scores(asking, key, None, scoring)
        weights = weight.expand(*asking.shape[:3], -1)
        parts.append(_by_weights(asked, asking, given, key, value, weights, capped, scoring))
    return _together(parts, of_mask=False)


def _together(parts: list[tuple[Tensor, Tensor, Tensor, Tensor]], *, of_mask: bool) -> Gradients:
    """Of all rows, from those of some at a time."""
    of_query, of_key, of_value, of_scores = (list(each) for each in zip(*parts, strict=True))
    return Gradients(
        torch.cat(of_query, 2),
        torch.stack(of_key).sum(0),
        torch.stack(of_value).sum(0),
        torch.cat(of_scores, 2) if of_mask else None,
    )


def _by_weights(
    grad: Tensor,
    query: Tensor,
    out: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
    capped: Tensor | None,
    scoring: Scoring,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    G = key.shape[1]
    weights, grads = weights.unflatten(1, (G, -1)), grad.unflatten(1, (G, -1))
    of_value = (weights.transpose(-1, -2) @ grads).sum(2)
    by_row = (grad * out).sum(-1, keepdim=True).unflatten(1, (G, -1))
    of_scores = weights * (grads @ value[:, :, None].transpose(-1, -2) - by_row)
    of_products = of_scores * scoring.scale
    if capped is not None:
        of_products = of_products * (1.0 - capped.square()).unflatten(1, (G, -1))
    of_query = (of_products @ key[:, :, None]).flatten(1, 2)
    of_key = (of_products.transpose(-1, -2) @ query.unflatten(1, (G, -1))).sum(2)
    return of_query, of_key, of_value, of_scores.flatten(1, 2)
