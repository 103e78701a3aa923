"""Exact attention of a sequence whose tokens are spread over processes, from each one's part to its part.

What each one sends, and what it asks for, stands in `cost`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remixer.mixers.distributed.collectives import exchanged, gathered
from remixer.mixers.distributed.cost import skips_unseen
from remixer.mixers.distributed.layout import Layout, in_order, own_places, part_size
from remixer.mixers.distributed.ranks import Ranks
from remixer.mixers.distributed.ring import ring_attention
from remixer.mixers.distributed.seen_keys import attention_to_seen
from remixer.mixers.softmax import exact_attention, repeat_heads
from remixer.mixers.spec import AttentionSpec


@dataclass(frozen=True)
class Spread:
    """How the tokens of one attention are spread.

    Attributes:
        spec: of the attention.
        ranks: the processes.
        layout: which tokens each has.
        queries: T, how many there are in all.
        keys: S.
    """

    spec: AttentionSpec
    ranks: Ranks
    layout: Layout
    queries: int
    keys: int

    def own(self, like: Tensor, tokens: int) -> Tensor:
        """The places of this process among so many tokens: those beyond the last are of none."""
        return own_places(like, part_size(tokens, self.ranks.size, self.layout), self.ranks, self.layout)

    def whole(self, part: Tensor, dim: int, tokens: int) -> Tensor:
        """All tokens, from the parts of all processes."""
        return in_order(gathered(part, dim, self.ranks), dim, tokens, self.ranks.size, self.layout)

    def part(self, whole: Tensor, dim: int, tokens: int) -> Tensor:
        """This process's tokens of all; a place that is of none holds the last one."""
        return whole.index_select(dim, self.own(whole, tokens).clamp(max=tokens - 1))


@dataclass(frozen=True)
class Operands:
    """What an attention reads, of this process's tokens.

    Attributes:
        query: (B, H, n, D).
        key: (B, G, m, D).
        value: (B, G, m, E).
        padding: (B, m) bool, which of the keys exist, or None.
        bias: by offset, (H, 2 T - 1), the same everywhere; dense, broadcastable to (B, H, n, S), or None.
        sink: (H,), or None.
        by_row: whether a dense bias has a row for each query, rather than one for all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    padding: Tensor | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None
    by_row: bool = False


def by_gathering(given: Operands, spread: Spread, dropout: float = 0.0) -> Tensor:
    """Keys and values of all processes come here: any mask."""
    key, value = (spread.whole(each, 2, spread.keys) for each in (given.key, given.value))
    padding = None if given.padding is None else spread.whole(given.padding.to(torch.uint8), 1, spread.keys).bool()
    return of_own_rows(replace(given, key=key, value=value, padding=padding), spread, dropout)


def of_own_rows(given: Operands, spread: Spread, dropout: float) -> Tensor:
    """Attention of this process's queries, to keys and values, and a padding, of all processes."""
    spec, key, value, padding = spread.spec, given.key, given.value, given.padding
    if skips_unseen(spec, training=dropout > 0.0):
        mixed = attention_to_seen(
            given.query, key, value, padding, given.bias, spec=spec, layout=spread.layout, ranks=spread.ranks
        )
        if padding is None or not spec.pads_queries:
            return mixed
        return mixed.masked_fill(~spread.part(padding, 1, spread.keys)[:, None, :, None], 0.0)
    rows = spread.own(given.query, spread.queries).clamp(max=spread.queries - 1)
    return exact_attention(
        given.query,
        key,
        value,
        rows=rows,
        spec=spec,
        queries=spread.queries,
        padding=padding,
        bias=given.bias,
        sink=given.sink,
        dropout=dropout,
    )


def by_ring(given: Operands, spread: Spread, dropout: float = 0.0) -> Tensor:
    """Keys and values go round."""
    exist, spec = given.padding, spread.spec
    mixed = ring_attention(
        given.query,
        given.key,
        given.value,
        exist,
        given.bias,
        spec=spec,
        keys=spread.keys,
        layout=spread.layout,
        ranks=spread.ranks,
    )
    return mixed if exist is None or not spec.pads_queries else mixed.masked_fill(~exist[:, None, :, None], 0.0)


def by_heads(given: Operands, spread: Spread, dropout: float = 0.0) -> Tensor:
    """Ulysses (Jacobs et al., 2023): all-to-all from a part of the tokens to a part of the heads, and back."""
    spec, ranks = spread.spec, spread.ranks
    key, value = given.key, given.value
    if spec.kv_heads % ranks.size:  # not every process would get one: each head gets its own
        key, value = (repeat_heads(each, spec.groups) for each in (key, value))
        spec = replace(spec, kv_heads=spec.heads)
    heads = spec.heads // ranks.size

    def exchange(tensor: Tensor, tokens: int) -> Tensor:
        together = exchanged(tensor, 1, 2, ranks)
        return in_order(together, 2, tokens, ranks.size, spread.layout)

    query = exchange(given.query, spread.queries)
    key, value = (exchange(each, spread.keys) for each in (key, value))
    padding = None if given.padding is None else spread.whole(given.padding.to(torch.uint8), 1, spread.keys).bool()
    mine = own_places(query, heads, ranks, "contiguous")
    bias = given.bias
    if bias is not None and spec.bias == "offset":
        bias = bias.index_select(0, mine)
    elif bias is not None:
        bias = spread.whole(bias, bias.dim() - 2, spread.queries) if given.by_row else bias
        bias = bias if bias.dim() < 3 or bias.shape[-3] == 1 else bias.index_select(bias.dim() - 3, mine)
    mixed = exact_attention(
        query,
        key,
        value,
        spec=replace(spec, heads=heads, kv_heads=spec.kv_heads // ranks.size),
        padding=padding,
        bias=bias,
        sink=None if given.sink is None else given.sink.index_select(0, mine),
        dropout=dropout,
    )
    return exchanged(spread_again(mixed, spread), 2, 1, ranks)


def spread_again(whole: Tensor, spread: Spread) -> Tensor:
    """Tokens in the order of the processes that have them, the last one again at places that are of none."""
    part, P = part_size(spread.queries, spread.ranks.size, spread.layout), spread.ranks.size
    places = torch.arange(part * P, device=whole.device)
    if spread.layout == "zigzag":
        pieces = places.unflatten(0, (2, P, -1))
        places = torch.stack([pieces[0], pieces[1].flip(0)], 1).flatten()
    return whole.index_select(2, places.clamp(max=spread.queries - 1))


SCHEMES = {"all_gather": by_gathering, "ring": by_ring, "ulysses": by_heads}
