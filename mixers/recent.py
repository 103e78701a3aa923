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
        if self._values and key == self._key and len(current) == len(self._made_from):
            pairs = zip(current, self._made_from, strict=True)
            if all(new.dtype == old.dtype and torch.equal(new, old) for new, old in pairs):
                return self._values[0]
        value = make()
        self._key, self._made_from, self._values = key, [each.detach().clone() for each in current], [value]
        return value

    def __deepcopy__(self, memo: dict[int, object]) -> Recent[V]:
        return Recent()

    def __reduce__(self) -> tuple[type[Recent[V]], tuple[()]]:
        return Recent, ()
