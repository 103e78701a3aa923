"""Tables of angles whose last axis holds everything twice, as rotary position embeddings have them."""

from __future__ import annotations

from typing import Any

from remixer.export.onnx.nodes import is_last, numbers, rank_of

ONE_BY_ONE = ("Cos", "Sin", "Cast", "Identity")


def has_equal_halves(value: Any) -> bool:
    """Whether the two halves of the last axis of a value are the same, as far as its nodes prove it."""
    import numpy as np

    if value is None:
        return False
    if value.const_value is not None:
        table = value.const_value.numpy()
        half = table.shape[-1] // 2 if table.ndim else 0
        return half > 0 and bool(np.array_equal(table[..., :half], table[..., half:]))
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in ONE_BY_ONE:
        return has_equal_halves(node.inputs[0])
    if node.op_type == "Unsqueeze":
        axes, rank = numbers(node.inputs[1]), rank_of(value)
        return (
            bool(axes)
            and rank > 0
            and not any(is_last(axis, rank) for axis in axes or ())
            and has_equal_halves(node.inputs[0])
        )
    if node.op_type == "Mul":
        single = [each for each in node.inputs if each.const_value is not None and each.const_value.size == 1]
        others = [each for each in node.inputs if each not in single]
        return len(others) == 1 and has_equal_halves(others[0])
    if node.op_type == "Concat":
        twice = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return twice and is_last(node.attributes.get_int("axis"), rank_of(value))
    return False
