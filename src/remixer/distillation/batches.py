"""Going through data again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils import _pytree as pytree

from remixer.distillation.errors import TransferError
from remixer.rewrite.inputs import Call, Inputs, as_call
from remixer.rewrite.program import Program, shape_of


def calls(data: Iterable[Inputs], program: Program, device: torch.device) -> Iterator[Call]:
    """Every batch of the data once, as a call of a program.

    Raises:
        TransferError: a batch doesn't have the inputs that the program takes.
    """
    names = sorted(program.kwargs)
    for inputs in data:
        args, kwargs = as_call(inputs)
        if len(args) != len(program.args) or sorted(kwargs) != names:
            given = f"{len(args)} by place and {', '.join(sorted(kwargs)) or 'none'} by name"
            taken = f"{len(program.args)} by place and {', '.join(names) or 'none'} by name"
            raise TransferError(f"a batch of the data has inputs {given}; the model was remixed with {taken}")
        _check_sizes((args, kwargs), program)
        yield pytree.tree_map_only(torch.Tensor, lambda each: each.to(device), (args, kwargs))


def _check_sizes(call: Call, program: Program) -> None:
    """Raise TransferError where a batch is longer than the program takes."""
    args, kwargs = call
    placeholders = program.graph.find_nodes(op="placeholder")
    leaves = pytree.tree_leaves((args, {name: kwargs[name] for name in program.kwargs}))
    for node, leaf in zip(placeholders, leaves, strict=False):
        for dim, (size, symbol) in enumerate(zip(getattr(leaf, "shape", ()), shape_of(node) or (), strict=False)):
            _, largest = program.limits.get(symbol, (0, None))
            if largest is not None and size > largest:
                raise TransferError(
                    f"a batch of the data has {size:,} in dim {dim} of {node.target}, longer than the {largest:,} that "
                    f"the model takes: cut it, or give remix max_length={size}"
                )


class AgainAndAgain(Iterator[Call]):
    """The batches of the data, from the first again after the last; it ends where data can be gone through once only.

    Args:
        data: the batches; a list for example, or what gives an iterator of its own each time.
        program: that takes them.
        device: where they are to lie.
        skip: how many to leave out at the start.

    Attributes:
        count: how many batches the data holds, or None before all of them were seen.

    Raises:
        TransferError: there is no batch at all, or one that the program can't take.
    """

    def __init__(self, data: Iterable[Inputs], program: Program, device: torch.device, skip: int = 0) -> None:
        self.count: int | None = None
        self._batches = self._endless(data, program, device, skip)

    def __next__(self) -> Call:
        return next(self._batches)

    def _endless(self, data: Iterable[Inputs], program: Program, device: torch.device, skip: int) -> Iterator[Call]:
        place = 0
        while True:
            before = place
            for call in calls(data, program, device):
                place += 1
                if place > skip:
                    yield call
            if place == before:
                if before == 0:
                    raise TransferError("the data holds no batch")
                return
            self.count = place - before
