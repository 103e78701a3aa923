"""What a loaded model gives where the class of its outputs is not to be had."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree


class Outputs(OrderedDict[str, Any]):
    """Outputs by name: `outputs["logits"]`, `outputs.logits` and `outputs[0]` are the same, as in transformers.

    Attributes:
        of: the class that the original model gave, as "module.Class".

    Examples:
        >>> Outputs([("logits", 3)]).logits
        3
    """

    def __init__(self, items: Iterable[tuple[str, Any]] = (), of: str = "") -> None:
        super().__init__(items)
        self.__dict__["of"] = of

    def __getattr__(self, name: str) -> Any:
        if name in self and not name.startswith("_"):
            return super().__getitem__(name)
        raise AttributeError(f"these outputs have no {name!r}, but {', '.join(self)}")

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return Outputs, (list(self.items()), self.of)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values in their order."""
        return tuple(super(Outputs, self).__getitem__(name) for name in self)


def _flatten(outputs: Outputs) -> tuple[list[Any], tuple[str, tuple[str, ...]]]:
    return list(outputs.to_tuple()), (outputs.of, tuple(outputs))


def _unflatten(values: Iterable[Any], context: tuple[str, tuple[str, ...]]) -> Outputs:
    of, names = context
    return Outputs(zip(names, values, strict=True), of)


pytree.register_pytree_node(
    Outputs,
    _flatten,
    _unflatten,
    serialized_type_name="remixer.Outputs",
    to_dumpable_context=lambda context: [context[0], list(context[1])],
    from_dumpable_context=lambda context: (context[0], tuple(context[1])),
)
