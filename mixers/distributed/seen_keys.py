"""Attention of a process's queries to those of all keys that they may see: of the others nothing is computed.

All keys are here. Under a causal mask each piece of queries meets the keys before it, and its own tokens: so processes
that have two pieces of a sequence, the r-th and the r-th from the end, do the same, half of what all scores would be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.distributed.attention_operator import differentiable
from remixer.mixers.distributed.blocks import evenly_gradients, nothing
from remixer.mixers.distributed.layout import Layout
from remixer.mixers.distributed.meetings import Backward, attend, joined
from remixer.mixers.distributed.pieces import Ring, meetings_with_all, ring_of, slices_of
from remixer.mixers.distributed.ranks import Ranks, rank_in
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec


def attention_to_seen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    exist: Tensor | None,
    bias: Tensor | None,
    *,
    spec: AttentionSpec,
    layout: Layout,
    ranks: Ranks,
) -> Tensor:
    """Attention of this process's queries; the spec is one that a ring takes too.

    Args:
        query: (B, H, n, D), at the places of this process.
        key: (B, G, S, D), all of them.
        value: (B, G, S, E).
        exist: (B, S) bool, which of the keys exist, or None.
        bias: by offset, (H, 2 S - 1), or None.
        spec: of the attention.
        layout: how queries are spread.
        ranks: the processes.

    Returns:
        (B, H, n, E).
    """
    ring = ring_of(spec, key.shape[2], layout, ranks)
    out, _ = _seen_attention(query.contiguous(), key.contiguous(), value.contiguous(), exist, bias, *ring)
    mixed: Tensor = out
    return mixed


def attend_to_seen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    exist: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float,
    causal: bool,
    left: int,
    right: int,
    mean: bool,
    keys: int,
    layout: str,
    size: int,
    group: str,
) -> tuple[Tensor, Tensor]:
    """What the operator does; its arguments are those of `attention_to_seen` and of `Ring`.

    Returns:
        The output, and the logarithms (B, H, n) of the sums of the exponentials of the scores.
    """
    ring = Ring(scale, softcap, causal, left, right, mean, keys, layout, size, group)
    dtype = at_least_float32(query.dtype)
    rows, k, v = query.to(dtype), key.to(dtype), value.to(dtype)
    found = [nothing(rows[:, :, piece], v) for piece in slices_of(query.shape[2], layout)]
    attend(found, meetings_with_all(ring, bias, exist, rank_in(group), rows), rows, k, v, ring)
    return joined(found, v.mean(2) if mean else None, value.dtype)


def gradients_of_seen(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    exist: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    softcap: float,
    causal: bool,
    left: int,
    right: int,
    mean: bool,
    keys: int,
    layout: str,
    size: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and bias, from that of the output and what the operator gave."""
    ring = Ring(scale, softcap, causal, left, right, mean, keys, layout, size, group)
    dtype = at_least_float32(query.dtype)
    rows, k, v, grads, given = (each.to(dtype) for each in (query, key, value, grad, out))
    dead = lse == -torch.inf
    of_dead, grads = grads * dead[..., None], grads.masked_fill(dead[..., None], 0.0)
    of_query, of_key, of_value = torch.zeros_like(rows), torch.zeros_like(k), torch.zeros_like(v)
    of_bias = query.new_zeros(0, dtype=dtype) if bias is None else torch.zeros_like(bias, dtype=dtype)
    backward = Backward(rows, grads, given, lse, of_query, of_bias, bias is not None)
    backward.ask(meetings_with_all(ring, bias, exist, rank_in(group), rows), ring, k, v, of_key, of_value)
    if mean and bool(dead.any()):
        weight = rows.new_full((keys,), 1.0 / keys)
        asked = evenly_gradients(of_dead, rows, given, k, v, weight, ring.scoring)
        of_query, of_key, of_value = of_query + asked.query, of_key + asked.key, of_value + asked.value
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), of_bias


_seen_attention = differentiable("seen_attention", attend_to_seen, gradients_of_seen)
