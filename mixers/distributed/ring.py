"""Ring attention (Liu et al., 2023): keys and values go round the processes, and no one ever holds all of them.

It is one operator, since what a process has to do at each hop depends on which one it is: a graph of it is the same on
all. Each piece of keys that no query of a process may see is skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.distributed.attention_operator import differentiable
from remixer.mixers.distributed.blocks import evenly_gradients, nothing
from remixer.mixers.distributed.layout import Layout, places_of
from remixer.mixers.distributed.meetings import Backward, attend, joined
from remixer.mixers.distributed.pieces import Ring, meetings, ring_of, slices_of, values_of_keys
from remixer.mixers.distributed.ranks import Ranks, rank_in
from remixer.mixers.distributed.rotation import hops, moved
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    exist: Tensor | None,
    bias: Tensor | None,
    *,
    spec: AttentionSpec,
    keys: int,
    layout: Layout,
    ranks: Ranks,
) -> Tensor:
    """Attention of this process's queries over the keys of all.

    Args:
        query: (B, H, n, D), at the places of this process.
        key: (B, G, n, D).
        value: (B, G, n, E).
        exist: (B, n) bool, which of the keys exist, or None.
        bias: by offset, (H, 2 S - 1), or None.
        spec: of the attention.
        keys: S, how many keys there are in all.
        layout: how they are spread.
        ranks: the processes.

    Returns:
        (B, H, n, E).
    """
    ring = ring_of(spec, keys, layout, ranks)
    out, _ = _ring_attention(query.contiguous(), key.contiguous(), value.contiguous(), exist, bias, *ring)
    mixed: Tensor = out
    return mixed


def attend_around(
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
    """What the operator does; its arguments are those of `ring_attention` and of `Ring`.

    Returns:
        The output, and the logarithms (B, H, n) of the sums of the exponentials of the scores.
    """
    ring = Ring(scale, softcap, causal, left, right, mean, keys, layout, size, group)
    dtype = at_least_float32(query.dtype)
    rank, rows = rank_in(group), query.to(dtype)
    found = [nothing(rows[:, :, piece], value) for piece in slices_of(query.shape[2], layout)]
    values = torch.zeros_like(value[:, :, 0], dtype=dtype)
    for source, (k, v, there) in hops(ring, rank, [key, value, exist]):
        k, v = k.to(dtype), v.to(dtype)
        attend(found, meetings(ring, bias, there, rank, source, rows, key.shape[2]), rows, k, v, ring)
        if mean:
            values += values_of_keys(ring, source, v).sum(2)
        del k, v, there  # or they would be here while the next but one comes
    return joined(found, values / keys if mean else None, value.dtype)


def gradients_around(
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
    dtype, rank = at_least_float32(query.dtype), rank_in(group)
    rows, grads, given = query.to(dtype), grad.to(dtype), out.to(dtype)
    dead = lse == -torch.inf
    of_dead, grads = grads * dead[..., None], grads.masked_fill(dead[..., None], 0.0)
    evenly = mean and bool(dead.any())
    of_query = torch.zeros_like(rows)
    of_bias = query.new_zeros(0, dtype=dtype) if bias is None else torch.zeros_like(bias, dtype=dtype)
    backward = Backward(rows, grads, given, lse, of_query, of_bias, bias is not None)
    # What keys and values are asked for travels one hop behind them, and one hop more, home.
    travelling = [torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)]
    for source, (k, v, there) in hops(ring, rank, [key, value, exist]):
        k, v = k.to(dtype), v.to(dtype)
        backward.ask(meetings(ring, bias, there, rank, source, rows, key.shape[2]), ring, k, v, *travelling)
        if evenly:
            weight = (places_of(source, key.shape[2], size, layout) < keys).to(rows) / keys
            asked = evenly_gradients(of_dead, rows, given, k, v, weight, ring.scoring)
            of_query += asked.query
            travelling[0] += asked.key
            travelling[1] += asked.value
        del k, v, there
        travelling = moved(travelling, ring, rank)
    of_key, of_value = travelling
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), of_bias


_ring_attention = differentiable("ring_attention", attend_around, gradients_around)
