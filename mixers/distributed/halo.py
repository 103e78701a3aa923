"""What lies beside a process's part of the tokens: its halo, fetched from whichever processes have it.

It is one operator, since which tokens a process sends to which depends on which one it is: a graph of it is the same on
all. A halo may be longer than a part; then it comes from several processes, by one all-to-all all the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from remixer.mixers.distributed.ranks import Ranks, rank_in


def with_halo(part: Tensor, left: int, right: int, ranks: Ranks) -> Tensor:
    """A process's tokens with those beside them. Its backward sends every gradient to the process that has the token.

    Args:
        part: (B, G, n, D), contiguous parts of the same n on all processes.
        left: how many tokens before the part.
        right: how many behind it.
        ranks: the processes.

    Returns:
        (B, G, left + n + right, D), zero beyond the first process and the last.
    """
    around: Tensor = _halo(part.contiguous(), left, right, ranks.size, ranks.name)
    return around


def overlap(mine: int, theirs: int, part: int, left: int, right: int) -> range:
    """Which places of a process lie in the halo of another.

    Examples:
        >>> overlap(0, 1, 10, 4, 0), overlap(3, 1, 10, 4, 12)
        (range(6, 10), range(30, 32))
    """
    nothing = range(mine * part, mine * part)
    if theirs > mine:
        return range(max(mine * part, theirs * part - left), (mine + 1) * part) or nothing
    if theirs < mine:
        return range(mine * part, min((mine + 1) * part, (theirs + 1) * part + right)) or nothing
    return nothing


def tokens_sent(rank: int, size: int, part: int, left: int, right: int) -> int:
    """How many tokens a process sends, each as often as others need it."""
    return min(left, (size - 1 - rank) * part) + min(right, rank * part)


def fetch(part: Tensor, left: int, right: int, size: int, group: str) -> Tensor:
    """What the operator does; see `with_halo`."""
    rank, n = rank_in(group), part.shape[2]
    first = part.movedim(2, 0)  # tokens lead: (n, B, G, D)
    sent = [overlap(rank, other, n, left, right) for other in range(size)]
    come = [overlap(other, rank, n, left, right) for other in range(size)]
    found = _exchanged(torch.cat([first[_own(each, rank, n)] for each in sent]), sent, come, group)
    around = part.new_zeros(left + n + right, *first.shape[1:])
    around[left : left + n] = first
    start = rank * n - left
    for places, tokens in zip(come, found.split([len(each) for each in come]), strict=True):
        around[places.start - start : places.start - start + len(places)] = tokens
    return around.movedim(0, 2).contiguous()


def give_back(grad: Tensor, left: int, right: int, size: int, group: str) -> Tensor:
    """The adjoint of `fetch`: (B, G, left + n + right, D) to (B, G, n, D)."""
    rank, n = rank_in(group), grad.shape[2] - left - right
    around, start = grad.movedim(2, 0), rank * n - left
    sent = [overlap(other, rank, n, left, right) for other in range(size)]
    come = [overlap(rank, other, n, left, right) for other in range(size)]
    pieces = [around[each.start - start : each.start - start + len(each)] for each in sent]
    found = _exchanged(torch.cat(pieces), sent, come, group)
    part = around[left : left + n].clone(memory_format=torch.contiguous_format)
    for places, tokens in zip(come, found.split([len(each) for each in come]), strict=True):
        part[_own(places, rank, n)] += tokens
    return part.movedim(0, 2).contiguous()


def _own(places: range, rank: int, part: int) -> slice:
    """Where places of this process lie in its tensors."""
    return slice(places.start - rank * part, places.stop - rank * part)


def _exchanged(tokens: Tensor, sent: list[range], come: list[range], group: str) -> Tensor:
    counts = [len(each) for each in come], [len(each) for each in sent]
    flat = tokens.flatten(1).contiguous()
    found = torch.ops._c10d_functional.all_to_all_single(flat, *counts, group)
    whole: Tensor = torch.ops._c10d_functional.wait_tensor(found)
    return whole.unflatten(1, tokens.shape[1:])


_halo = torch.library.custom_op("remixer::halo", fetch, mutates_args=())
_halo_backward = torch.library.custom_op("remixer::halo_backward", give_back, mutates_args=())


@_halo.register_fake
def _(part: Tensor, left: int, right: int, size: int, group: str) -> Tensor:
    B, G, n, D = part.shape
    return part.new_empty(B, G, left + n + right, D)


@_halo_backward.register_fake
def _(grad: Tensor, left: int, right: int, size: int, group: str) -> Tensor:
    B, G, m, D = grad.shape
    return grad.new_empty(B, G, m - left - right, D)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.halo = inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return _halo_backward(grad.contiguous(), *ctx.halo), None, None, None, None


_halo.register_autograd(_backward, setup_context=_save)
