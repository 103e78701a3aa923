"""Pieces of the queries of one process, and of the keys of another, as a ring lets them meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remixer.mixers.distributed.blocks import Scoring
from remixer.mixers.distributed.layout import Layout, pieces_of, places_of
from remixer.mixers.distributed.ranks import Ranks
from remixer.mixers.offset_bias import bias_at
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


HIDDEN, CAUSAL = object(), object()


def slices_of(part: int, layout: str) -> list[slice]:
    """Where the pieces of a process lie in its tensors."""
    return [slice(0, part)] if layout == "contiguous" else [slice(0, part // 2), slice(part // 2, part)]


def mask_between(
    ring: Ring, bias: Tensor | None, exist: Tensor | None, rows: range, columns: range, like: Tensor
) -> Any:
    """What is added to the scores of queries and keys at some places; `exist` is of these keys, (B, columns).

    None for nothing, HIDDEN if no key is seen, CAUSAL if they are the same tokens, and that is all.
    """
    nearest, furthest = columns.start - (rows.stop - 1), columns.stop - 1 - rows.start  # the least and largest offset
    after = 0 if ring.causal else ring.right
    if columns.start >= ring.keys or (after != FAR and nearest > after) or (ring.left != FAR and furthest < -ring.left):
        return HIDDEN
    device, dtype = like.device, like.dtype
    near = ring.left == FAR or nearest >= -ring.left
    if ring.causal and rows == columns and near and bias is None and exist is None and columns.stop <= ring.keys:
        return CAUSAL
    places = torch.arange(columns.start, columns.stop, device=device)

    def offset() -> Tensor:  # made only where something asks for it: it is as large as the scores of a head
        return places.int() - torch.arange(rows.start, rows.stop, device=device, dtype=torch.int32)[:, None]

    hidden = None
    if columns.stop > ring.keys:
        hidden = (places >= ring.keys)[None]
    for outside in (
        offset() > after if after != FAR and furthest > after else None,
        offset() < -ring.left if not near else None,
    ):
        hidden = outside if hidden is None else hidden if outside is None else hidden | outside
    hidden = None if hidden is None else hidden[None, None]
    if exist is not None:
        gone = ~exist[:, None, None]
        hidden = gone if hidden is None else hidden | gone
    if bias is None and hidden is None:
        return None
    added = (
        torch.zeros((), dtype=dtype, device=device)
        if bias is None
        else bias_at(bias, offset(), ring.keys).to(dtype)[None]
    )
    whole = added if hidden is None else torch.where(hidden, -torch.inf, added)
    return whole.expand(*whole.shape[:2], len(rows), len(columns))


class Meeting(NamedTuple):
    """A piece of queries, and one of keys that some of them may see.

    Attributes:
        mine: which of the process's pieces of queries.
        cut: where it lies in the process's tensors.
        other: where the keys lie in those that came.
        places: of queries and keys in the sequence.
        how: what `attend_block` and `block_gradients` take of a mask.
    """

    mine: int
    cut: slice
    other: slice
    places: tuple[range, range]
    how: dict[str, Any]


def meetings(
    ring: Ring, bias: Tensor | None, exist: Tensor | None, rank: int, source: int, like: Tensor, keys: int
) -> Iterator[Meeting]:
    """All pieces that meet in a process while the keys of another are there.

    Args:
        ring: that they go round.
        bias: by offset, (H, 2 S - 1), or None.
        exist: (B, m) bool, which of the keys do, or None.
        rank: the process.
        source: whose keys they are.
        like: its queries (B, H, n, D), which give dtype and device of masks.
        keys: m.
    """
    queries = like.shape[2]
    all_rows, all_columns = (pieces_of(*each, ring.size, ring.layout) for each in ((rank, queries), (source, keys)))
    for mine, cut in enumerate(slices_of(queries, ring.layout)):
        for theirs, other in enumerate(slices_of(keys, ring.layout)):
            places, there = (all_rows[mine], all_columns[theirs]), None if exist is None else exist[:, other]
            mask = mask_between(ring, bias, there, *places, like)
            if mask is not HIDDEN:
                yield Meeting(mine, cut, other, places, _how(mask))


def meetings_with_all(
    ring: Ring, bias: Tensor | None, exist: Tensor | None, rank: int, like: Tensor
) -> Iterator[Meeting]:
    """All pieces of queries of a process, each with those of the keys of all processes that it may see.

    Args:
        ring: tells what is seen; nothing goes round.
        bias: by offset, (H, 2 S - 1), or None.
        exist: (B, S) bool, which of the keys do, or None.
        rank: the process.
        like: its queries (B, H, n, D), which give dtype and device of masks.
    """
    after = 0 if ring.causal else ring.right
    rows = pieces_of(rank, like.shape[2], ring.size, ring.layout)
    for mine, cut in enumerate(slices_of(like.shape[2], ring.layout)):
        start = 0 if ring.left == FAR else max(0, rows[mine].start - ring.left)
        stop = ring.keys if after == FAR else min(ring.keys, rows[mine].stop + after)
        own = min(max(start, rows[mine].start), stop) if ring.causal else start  # what comes before needs no triangle
        for columns in (range(start, own), range(own, stop)):
            other = slice(columns.start, columns.stop)
            there = None if exist is None else exist[:, other]
            mask = mask_between(ring, bias, there, rows[mine], columns, like) if columns else HIDDEN
            if mask is not HIDDEN:
                yield Meeting(mine, cut, other, (rows[mine], columns), _how(mask))


def _how(mask: Any) -> dict[str, Any]:
    return {"mask": None, "causal": True} if mask is CAUSAL else {"mask": mask, "causal": False}


def add_by_offset(total: Tensor, of_scores: Tensor, ring: Ring, rows: range, columns: range) -> None:
    """Add gradients of scores (B, H, n, m) of some places up by offset: total (H, 2 S - 1)."""
    device = total.device
    offset = (
        torch.arange(columns.start, columns.stop, device=device)
        - torch.arange(rows.start, rows.stop, device=device)[:, None]
    )
    places = (offset + ring.keys - 1).clamp(0, 2 * ring.keys - 2).flatten()
    total.index_add_(1, places, of_scores.sum(0).flatten(1))


def values_of_keys(ring: Ring, source: int, values: Tensor) -> Tensor:
    """The values (B, G, m, E) of a process, zero at places that are of no key."""
    part = values.shape[2]
    places = places_of(source, part, ring.size, ring.layout)
    return values * (places < ring.keys).to(values)[:, None]
