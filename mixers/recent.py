"""The last thing that was computed from a module's parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


class Recent(Generic[V]):
    """Keeps one value together with a copy of the parameters it was computed from.

    The parameters are compared by value, since nothing else notices every change: writes through `.data`, as
    weight averaging does them, leave the version counters alone, and freed memory is handed out again. Copies
    and pickles of the module that owns it start empty.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._made_from: list[Tensor] = []
        self._values: list[V] = []  # none or one

    def get(self, key: Hashable, parameters: Iterable[Tensor], make: Callable[[], V]) -> V:
        """The kept value if it was made for this key from these parameters, else a new one, which is kept."""
        current = list(parameters)
        if self._values and key == self._key and _equal(current, self._made_from):
            return self._values[0]
        value = make()
        self._key, self._made_from, self._values = key, [each.detach().clone() for each in current], [value]
        return value

    def __deepcopy__(self, memo: dict[int, object]) -> Recent[V]:
        return Recent()

    def __reduce__(self) -> tuple[type[Recent[V]], tuple[()]]:
        return Recent, ()


def _equal(new: list[Tensor], old: list[Tensor]) -> bool:
    """Whether they are the same; on a GPU, which has to be waited for, by one comparison."""
    kinds = [[(each.dtype, each.device, each.shape) for each in tensors] for tensors in (new, old)]
    if kinds[0] != kinds[1]:
        return False
    if new and new[0].is_cuda and len({kind[:2] for kind in kinds[0]}) == 1:
        return torch.equal(_joined(new), _joined(old))
    return all(torch.equal(one, other) for one, other in zip(new, old, strict=True))


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])
