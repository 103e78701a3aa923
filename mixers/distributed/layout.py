"""Which tokens of a sequence each process has.

"contiguous" gives every process one piece. "zigzag" (Zhu, ring-flash-attention, 2024) cuts the sequence into 2 P pieces
and gives process r the pieces r and 2 P - 1 - r, so that under a causal mask all have the same work.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from remixer.mixers.distributed.ranks import Ranks, rank_in

Layout = Literal["contiguous", "zigzag"]


def part_size(tokens: int, size: int, layout: str) -> int:
    """How many places each of `size` processes has for so many tokens; the last ones may be of no token."""
    if size == 1:
        return tokens
    pieces = 2 if layout == "zigzag" else 1
    return pieces * ((tokens + pieces * size - 1) // (pieces * size))


def pieces_of(rank: int, part: int, size: int, layout: str) -> list[range]:
    """The places of one process, piece by piece.

    Examples:
        >>> pieces_of(1, 4, 3, "zigzag")
        [range(2, 4), range(8, 10)]
    """
    if layout == "contiguous" or size == 1:
        return [range(rank * part, (rank + 1) * part)]
    half = part // 2
    return [range(piece * half, (piece + 1) * half) for piece in (rank, 2 * size - 1 - rank)]


def places_of(rank: int, part: int, size: int, layout: str) -> Tensor:
    """(part,) int64, the places of one process."""
    return torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces_of(rank, part, size, layout)])


@torch.library.custom_op("remixer::own_places", mutates_args=())
def _own_places(like: Tensor, part: int, size: int, layout: str, group: str) -> Tensor:
    return places_of(rank_in(group), part, size, layout).to(like.device)


@_own_places.register_fake
def _(like: Tensor, part: int, size: int, layout: str, group: str) -> Tensor:
    return like.new_empty(part, dtype=torch.int64)


def own_places(like: Tensor, part: int, ranks: Ranks, layout: Layout) -> Tensor:
    """The places of the process that runs this, as a node of a graph that is the same for all of them.

    Args:
        like: gives the device.
        part: how many there are.
        ranks: among which the tokens are spread.
        layout: how.

    Returns:
        (part,) int64.
    """
    places: Tensor = _own_places(like, part, ranks.size, layout, ranks.name)
    return places


def in_order(gathered: Tensor, dim: int, tokens: int, size: int, layout: Layout) -> Tensor:
    """The tokens of all processes, one process after the other, in the order of the sequence."""
    if layout == "zigzag" and size > 1:
        part = gathered.shape[dim] // size
        half = part // 2
        pieces = gathered.unflatten(dim, (size, 2, half))
        first, second = pieces.select(dim + 1, 0), pieces.select(dim + 1, 1)
        gathered = torch.cat([first, second.flip(dim)], dim).flatten(dim, dim + 1)
    return gathered.narrow(dim, 0, tokens)
