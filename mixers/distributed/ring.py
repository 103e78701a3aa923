"""Ring attention (Liu et al., 2023): keys and values go round the processes, and no one ever holds all of them.

It is one operator, since what a process has to do at each hop depends on which one it is: a graph of it is the same on
all. Each piece of keys that no query of a process may see is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remixer.mixers.distributed.blocks import (
    Found,
    Scoring,
    attend_block,
    block_gradients,
    evenly_gradients,
    merged,
    nothing,
)
from remixer.mixers.distributed.layout import Layout, pieces_of, places_of
from remixer.mixers.distributed.ranks import Ranks, rank_in
from remixer.mixers.offset_bias import bias_at
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec

FAR = -1  # in place of a bound that a window doesn't have


class Ring(NamedTuple):
    """What an operator's schema can hold of an attention and its ring.

    Attributes:
        scale: factor on the scores.
        softcap: of the scores, or 0.
        causal: queries see no key after them.
        left: how many tokens before itself a query sees, or FAR.
        right: how many after it, or FAR.
        mean: whether queries that see nothing give the mean of all values, else 0.
        keys: S, how many keys there are in all; places beyond are of none.
        layout: how tokens are spread.
        size: P.
        group: the process group's name.
    """

    scale: float
    softcap: float
    causal: bool
    left: int
    right: int
    mean: bool
    keys: int
    layout: str
    size: int
    group: str

    @property
    def scoring(self) -> Scoring:
        """How scores are made."""
        return Scoring(self.scale, self.softcap or None)


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


def ring_of(spec: AttentionSpec, keys: int, layout: Layout, ranks: Ranks) -> Ring:
    """The ring of an attention over so many keys."""
    left, right = (FAR if bound is None else bound for bound in spec.window)
    return Ring(
        spec.scale,
        spec.softcap or 0.0,
        spec.causal,
        left,
        FAR if spec.causal else right,
        spec.dead_rows == "mean",
        keys,
        layout,
        ranks.size,
        ranks.name,
    )


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
    found = [nothing(rows[:, :, piece], value) for piece in _slices(query.shape[2], layout)]
    found = [Found(*(each.to(dtype) for each in one)) for one in found]
    values = torch.zeros_like(value[:, :, 0], dtype=dtype)
    for source, (k, v, there) in _hops(ring, rank, [key, value, exist]):
        k, v = k.to(dtype), v.to(dtype)
        for mine, cut in enumerate(_slices(query.shape[2], layout)):
            for theirs, other in enumerate(_slices(key.shape[2], layout)):
                mask = _mask(ring, bias, there, (rank, mine, query.shape[2]), (source, theirs, key.shape[2]), rows)
                if mask is not HIDDEN:
                    kind = _kind(mask)
                    block = attend_block(rows[:, :, cut], k[:, :, other], v[:, :, other], scoring=ring.scoring, **kind)
                    found[mine] = merged(found[mine], block)
        if mean:
            values += _of_keys(ring, source, v).sum(2)
    out, lse = torch.cat([each.out for each in found], 2), torch.cat([each.lse for each in found], 2)
    if mean:
        everywhere = (values / keys).repeat_interleave(query.shape[1] // key.shape[1], 1)
        out = torch.where((lse == -torch.inf)[..., None], everywhere[:, :, None], out)
    return out.to(value.dtype).contiguous(), lse.contiguous()


_ring_attention = torch.library.custom_op("remixer::ring_attention", attend_around, mutates_args=())


@_ring_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, H, n, _D = query.shape
    return value.new_empty(B, H, n, value.shape[-1]), query.new_empty(B, H, n, dtype=at_least_float32(query.dtype))


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
    # What keys and values are asked for travels one hop behind them, and one hop more, home.
    travelling = [torch.zeros_like(key, dtype=dtype), torch.zeros_like(value, dtype=dtype)]
    for source, (k, v, there) in _hops(ring, rank, [key, value, exist]):
        k, v = k.to(dtype), v.to(dtype)
        for mine, cut in enumerate(_slices(query.shape[2], layout)):
            whole = Found(given[:, :, cut], lse[:, :, cut])
            for theirs, other in enumerate(_slices(key.shape[2], layout)):
                places = (rank, mine, query.shape[2]), (source, theirs, key.shape[2])
                mask = _mask(ring, bias, there, *places, rows)
                if mask is HIDDEN:
                    continue
                asked = block_gradients(
                    grads[:, :, cut],
                    rows[:, :, cut],
                    k[:, :, other],
                    v[:, :, other],
                    whole=whole,
                    scoring=ring.scoring,
                    of_mask=bias is not None,
                    **_kind(mask),
                )
                of_query[:, :, cut] += asked.query
                travelling[0][:, :, other] += asked.key
                travelling[1][:, :, other] += asked.value
                if bias is not None and asked.mask is not None:
                    _add_by_offset(of_bias, asked.mask, ring, *places)
        if evenly:
            weight = (places_of(source, key.shape[2], size, layout) < keys).to(rows) / keys
            asked = evenly_gradients(of_dead, rows, given, k, v, weight, ring.scoring)
            of_query += asked.query
            travelling[0] += asked.key
            travelling[1] += asked.value
        travelling = _moved(travelling, ring, rank)
    of_key, of_value = travelling
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), of_bias


_ring_attention_backward = torch.library.custom_op(
    "remixer::ring_attention_backward", gradients_around, mutates_args=()
)


@_ring_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, exist: Tensor | None, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = at_least_float32(query.dtype)
    of_bias = query.new_empty(0, dtype=dtype) if bias is None else torch.empty_like(bias, dtype=dtype)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, exist, bias, *ring = inputs
    ctx.save_for_backward(query, key, value, exist, bias, *output)
    ctx.ring = ring
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    query, key, value, exist, bias, out, lse = ctx.saved_tensors
    found = _ring_attention_backward(grad.contiguous(), query, key, value, exist, bias, out, lse, *ctx.ring)
    of_bias = None if bias is None else found[3].to(bias.dtype)
    return (*found[:3], None, of_bias, *(None for _ in Ring._fields))


_ring_attention.register_autograd(_backward, setup_context=_save)


HIDDEN, CAUSAL = object(), object()
_Place = tuple[int, int, int]  # a process, which of its pieces, and how many places it has


def _slices(part: int, layout: str) -> list[slice]:
    """Where the pieces of a process lie in its tensors."""
    return [slice(0, part)] if layout == "contiguous" else [slice(0, part // 2), slice(part // 2, part)]


def _range(ring: Ring, place: _Place) -> range:
    rank, piece, part = place
    return pieces_of(rank, part, ring.size, ring.layout)[piece]


def _mask(ring: Ring, bias: Tensor | None, exist: Tensor | None, mine: _Place, theirs: _Place, like: Tensor) -> Any:
    """What is added to the scores of a piece of queries and one of keys.

    None for nothing, HIDDEN if no key is seen, CAUSAL if they are the same tokens, and that is all.
    """
    rows, columns = _range(ring, mine), _range(ring, theirs)
    nearest, furthest = columns.start - (rows.stop - 1), columns.stop - 1 - rows.start  # the least and largest offset
    after = 0 if ring.causal else ring.right
    if columns.start >= ring.keys or (after != FAR and nearest > after) or (ring.left != FAR and furthest < -ring.left):
        return HIDDEN
    device, dtype = like.device, like.dtype
    near = ring.left == FAR or nearest >= -ring.left
    if ring.causal and rows == columns and near and bias is None and exist is None and columns.stop <= ring.keys:
        return CAUSAL
    places = torch.arange(columns.start, columns.stop, device=device)
    offset = places - torch.arange(rows.start, rows.stop, device=device)[:, None]
    hidden = None
    if columns.stop > ring.keys:
        hidden = (places >= ring.keys)[None]
    for outside in (
        offset > after if after != FAR and furthest > after else None,
        offset < -ring.left if ring.left != FAR and nearest < -ring.left else None,
    ):
        hidden = outside if hidden is None else hidden if outside is None else hidden | outside
    hidden = None if hidden is None else hidden[None, None]
    if exist is not None:
        gone = ~exist[:, None, None, _slices(theirs[2], ring.layout)[theirs[1]]]
        hidden = gone if hidden is None else hidden | gone
    if bias is None and hidden is None:
        return None
    added = (
        torch.zeros((), dtype=dtype, device=device)
        if bias is None
        else bias_at(bias, offset, ring.keys).to(dtype)[None]
    )
    whole = added if hidden is None else torch.where(hidden, -torch.inf, added)
    return whole.expand(*whole.shape[:2], len(rows), len(columns))


def _kind(mask: Any) -> dict[str, Any]:
    """What `_mask` found, as `attend_block` takes it."""
    return {"mask": None, "causal": True} if mask is CAUSAL else {"mask": mask, "causal": False}


def _add_by_offset(total: Tensor, of_scores: Tensor, ring: Ring, mine: _Place, theirs: _Place) -> None:
    """Add gradients of scores (B, H, n, m) up by offset: total (H, 2 S - 1)."""
    rows, columns = _range(ring, mine), _range(ring, theirs)
    device = total.device
    offset = (
        torch.arange(columns.start, columns.stop, device=device)
        - torch.arange(rows.start, rows.stop, device=device)[:, None]
    )
    places = (offset + ring.keys - 1).clamp(0, 2 * ring.keys - 2).flatten()
    total.index_add_(1, places, of_scores.sum(0).flatten(1))


def _of_keys(ring: Ring, source: int, values: Tensor) -> Tensor:
    """The values (B, G, m, E) of a process, zero at places that are of no key."""
    part = values.shape[2]
    places = places_of(source, part, ring.size, ring.layout)
    return values * (places < ring.keys).to(values)[:, None]


def _hops(ring: Ring, rank: int, tensors: list[Tensor | None]) -> Iterator[tuple[int, list[Any]]]:
    """Whose tensors are here, and these, hop by hop: those of the next hop are on their way meanwhile."""
    here = tensors
    for hop in range(ring.size):
        coming = _sent(here, ring, rank) if hop < ring.size - 1 else None
        yield (rank - hop) % ring.size, here
        if coming is not None:
            here = _arrived(coming, here)


def _sent(tensors: list[Tensor | None], ring: Ring, rank: int) -> Tensor:
    """All tensors in one piece on their way to the next process; what comes is of the one before."""
    flat = torch.cat([each.contiguous().view(torch.uint8).flatten() for each in tensors if each is not None])
    to, from_ = ([0] * ring.size, [0] * ring.size)
    to[(rank + 1) % ring.size], from_[(rank - 1) % ring.size] = len(flat), len(flat)
    coming: Tensor = torch.ops._c10d_functional.all_to_all_single(flat, from_, to, ring.group)
    return coming


def _arrived(coming: Tensor, like: list[Tensor | None]) -> list[Tensor | None]:
    flat = torch.ops._c10d_functional.wait_tensor(coming)
    found: list[Tensor | None] = []
    for each in like:
        if each is None:
            found.append(None)
            continue
        size = each.numel() * each.element_size()
        found.append(flat[:size].clone().view(each.dtype).view(each.shape))
        flat = flat[size:]
    return found


def _moved(tensors: list[Tensor], ring: Ring, rank: int) -> list[Tensor]:
    given: list[Tensor | None] = list(tensors)
    return [each for each in _arrived(_sent(given, ring, rank), given) if each is not None]
