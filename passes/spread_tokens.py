"""What sharded graphs call: from a whole sequence to this process's part of it, and back.

All of them are the identity, or what they stand for, in one process. `mesh_dim` names the processes, and `layout` says
which tokens each has; see `mixers.distributed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from remixer.mixers import LongShortMixer, Mixer, Softmax
from remixer.mixers.distributed.by_heads import mix_by_heads
from remixer.mixers.distributed.collectives import gathered, total
from remixer.mixers.distributed.cost import Scheme
from remixer.mixers.distributed.layout import Layout, in_order, own_places, part_size
from remixer.mixers.distributed.long_short import mix_own_tokens
from remixer.mixers.distributed.ranks import ranks_of
from remixer.mixers.distributed.schemes import SCHEMES, Operands, Spread
from remixer.mixers.spec import AttentionSpec


def own_tokens(tokens: int, mesh_dim: str, layout: Layout) -> int:
    """How many places this process has for so many tokens."""
    return part_size(tokens, ranks_of(mesh_dim).size, layout)


def part_of(whole: Tensor, dim: int, tokens: int, mesh_dim: str, layout: Layout) -> Tensor:
    """This process's tokens of all. A place that is of none holds the last token.

    Args:
        whole: whose size along dim is tokens, or rows times tokens.
        dim: along which the tokens lie.
        tokens: T.
        mesh_dim: see above.
        layout: see above.
    """
    ranks = ranks_of(mesh_dim)
    if ranks.size == 1:
        return whole
    places = own_places(whole, part_size(tokens, ranks.size, layout), ranks, layout).clamp(max=tokens - 1)
    if whole.shape[dim] == tokens:
        return whole.index_select(dim, places)
    return whole.unflatten(dim, (-1, tokens)).index_select(dim + 1, places).flatten(dim, dim + 1)


def whole_of(part: Tensor, dim: int, tokens: int, mesh_dim: str, layout: Layout) -> Tensor:
    """All tokens, on every process; see `part_of`."""
    ranks = ranks_of(mesh_dim)
    if ranks.size == 1:
        return part
    own = part_size(tokens, ranks.size, layout)
    rows = part.unflatten(dim, (-1, own))
    return in_order(gathered(rows, dim + 1, ranks), dim + 1, tokens, ranks.size, layout).flatten(dim, dim + 1)


def token_of(part: Tensor, dim: int, index: int, keepdim: bool, tokens: int, mesh_dim: str, layout: Layout) -> Tensor:
    """One token, on every process: the one that has it sends it.

    Args:
        part: see `whole_of`; its size along dim is that of the part.
        dim: along which the tokens lie.
        index: of the token, from the end if negative.
        keepdim: whether the dimension stays, with size 1.
        tokens: T.
        mesh_dim: see above.
        layout: see above.
    """
    ranks = ranks_of(mesh_dim)
    if ranks.size == 1:
        one = part.narrow(dim, index % tokens if index < 0 else index, 1)
        return one if keepdim else one.squeeze(dim)
    places = own_places(part, part.shape[dim], ranks, layout)
    hit = _along(places == (index if index >= 0 else tokens + index), part, dim)
    return total(torch.where(hit, part, torch.zeros((), dtype=part.dtype, device=part.device)).sum(dim, keepdim), ranks)


def sum_of(
    part: Tensor,
    dim: int,
    others: Sequence[int],
    keepdim: bool,
    mean: bool,
    tokens: int,
    mesh_dim: str,
    layout: Layout,
) -> Tensor:
    """The sum, or the mean, over all tokens and other dimensions, on every process; see `token_of`."""
    ranks = ranks_of(mesh_dim)
    dims = [dim, *others]
    if ranks.size > 1:
        there = _along(own_places(part, part.shape[dim], ranks, layout) < tokens, part, dim)
        part = torch.where(there, part, torch.zeros((), dtype=part.dtype, device=part.device))
    found = total(part.sum(dims, keepdim), ranks)
    return found / (tokens * math.prod(part.shape[each] for each in others)) if mean else found


def _along(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """(n,) as a tensor that broadcasts along a dimension of another."""
    return values.view([-1 if each == dim else 1 for each in range(like.dim())])


class SpreadAttention(nn.Module):
    """Exact attention of this process's tokens to those of all.

    Args:
        spec: of the attention.
        scheme: how.
        layout: which tokens each process has.
        mesh_dim: names the processes.
        by_row: whether a dense bias has a row for each query, rather than one for all.
    """

    def __init__(self, spec: AttentionSpec, scheme: Scheme, layout: Layout, mesh_dim: str, *, by_row: bool) -> None:
        super().__init__()
        self.spec, self.scheme, self.layout, self.mesh_dim, self.by_row = spec, scheme, layout, mesh_dim, by_row
        self.alone = Softmax(spec)

    def forward(
        self,
        tokens: int,
        keys: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """From this process's operands, see `mixers.distributed.schemes.Operands`, to its part of the output.

        Args:
            tokens: T, how many queries there are in all.
            keys: S.
            query: (B, H, n, D).
            key: (B, G, m, D).
            value: (B, G, m, E).
            padding: (B, m) bool, or None.
            bias: by offset or dense, or None.
            sink: (H,), or None.

        Returns:
            (B, H, n, E).
        """
        ranks = ranks_of(self.mesh_dim)
        if ranks.size == 1:
            alone: Tensor = self.alone(query, key, value, padding=padding, bias=bias, sink=sink)
            return alone
        spread = Spread(self.spec, ranks, self.layout, tokens, keys)
        dropout = self.spec.dropout if self.training else 0.0
        return SCHEMES[self.scheme](Operands(query, key, value, padding, bias, sink, self.by_row), spread, dropout)

    def extra_repr(self) -> str:
        """For torch's printout."""
        return f"{self.spec}, scheme={self.scheme}, layout={self.layout}, mesh_dim={self.mesh_dim}"


class HeadsMixer(nn.Module):
    """A mixer of which each process lets its heads run on all tokens; see `mixers.distributed.by_heads`.

    Args:
        mixer: whose heads know nothing of one another.
        some: as it is for the heads of one process.
        ranks: of so many.
        layout: which tokens each process has.
        mesh_dim: names the processes.
    """

    def __init__(self, mixer: Mixer, some: Mixer, ranks: int, layout: Layout, mesh_dim: str) -> None:
        super().__init__()
        self.mixer, self.some, self.size, self.layout, self.mesh_dim = mixer, (some,), ranks, layout, mesh_dim
        self.by_row = False

    def forward(self, tokens: int, keys: int, **operands: Tensor | None) -> Tensor:
        """From this process's operands to its part of the output.

        Raises:
            ValueError: there is another number of processes.
        """
        ranks = ranks_of(self.mesh_dim)
        if ranks.size == 1:
            alone: Tensor = self.mixer(**operands)
            return alone
        if ranks.size != self.size:
            raise ValueError(f"the heads were spread over {self.size} processes, these are {ranks.size}")
        spread = Spread(self.mixer.spec, ranks, self.layout, tokens, keys)
        return mix_by_heads(self.mixer, self.some[0], operands, spread)


class OwnMixer(nn.Module):
    """A Long-Short mixer of this process's tokens; see `mixers.distributed.long_short`.

    Args:
        mixer: one that `refusal_of_halo` has nothing against.
        mesh_dim: names the processes, which have contiguous parts.
    """

    layout: Layout = "contiguous"
    by_row = False

    def __init__(self, mixer: LongShortMixer, mesh_dim: str) -> None:
        super().__init__()
        self.mixer, self.mesh_dim = mixer, mesh_dim

    def forward(self, tokens: int, keys: int, **operands: Tensor | None) -> Tensor:
        """From this process's operands to its part of the output; a padding is of all tokens."""
        ranks = ranks_of(self.mesh_dim)
        if ranks.size == 1:
            alone: Tensor = self.mixer(**operands)
            return alone
        return mix_own_tokens(self.mixer, operands, Spread(self.mixer.spec, ranks, self.layout, tokens, keys))


class WholeMixer(nn.Module):
    """A mixer that every process lets run on the whole sequence, to keep its own part of what it gives.

    Args:
        mixer: any.
        layout: which tokens each process has.
        mesh_dim: names the processes.
        by_row: whether a dense bias has a row for each query, rather than one for all.
    """

    def __init__(self, mixer: Mixer, layout: Layout, mesh_dim: str, *, by_row: bool) -> None:
        super().__init__()
        self.mixer, self.layout, self.mesh_dim, self.by_row = mixer, layout, mesh_dim, by_row

    def forward(self, tokens: int, keys: int, **operands: Tensor | None) -> Tensor:
        """From this process's operands to its part of the output."""
        along = {"query": (2, tokens), "key": (2, keys), "value": (2, keys), "padding": (1, keys), "source": (1, keys)}
        if (bias := operands.get("bias")) is not None and self.by_row:
            along["bias"] = (bias.dim() - 2, tokens)
        whole = {
            name: whole_of(each.to(torch.uint8), *along[name], self.mesh_dim, self.layout).bool()
            if each is not None and name == "padding"
            else whole_of(each, *along[name], self.mesh_dim, self.layout)
            if each is not None and name in along
            else each
            for name, each in operands.items()
        }
        return part_of(self.mixer(**whole), 2, tokens, self.mesh_dim, self.layout)
