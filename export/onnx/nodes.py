"""Questions to the nodes of an onnx_ir.Graph, and new ones in front of others."""

from __future__ import annotations

from typing import Any


def is_operator(node: Any, kind: str) -> bool:
    """Whether a node is a standard operator of this kind; None is none."""
    return node is not None and node.op_type == kind and not node.domain


def operands(value: Any, kind: str) -> list[Any]:
    """What a value was computed of, if by a standard operator of this kind; nothing of None."""
    node: Any = None if value is None else value.producer()
    return list(node.inputs) if is_operator(node, kind) else []


def numbers(value: Any) -> list[int] | None:
    """The entries of a constant, or None where a value is none."""
    known = None if value is None else value.const_value
    return None if known is None else [int(number) for number in known.numpy().reshape(-1)]


def is_last(axis: int, rank: int) -> bool:
    """Whether an axis is the last of so many, 0 where that isn't known."""
    return rank > 0 and axis in (-1, rank - 1)


def rank_of(value: Any) -> int:
    """How many axes a tensor has, 0 where that isn't known."""
    return 0 if value is None or value.shape is None else len(value.shape)


def last_size(value: Any) -> int | None:
    """The size of a tensor's last axis, None where that isn't a known number, or there is no axis."""
    size = value.shape[-1] if rank_of(value) else None
    return size if isinstance(size, int) else None


def in_front(
    graph: Any, node: Any, kind: str, inputs: list[Any], name: str, attributes: Any = None, domain: str = ""
) -> Any:
    """The output of a new node in front of another, named after that one, its first input, and what it gives."""
    import onnx_ir as ir

    made = ir.node(kind, inputs, attributes or {}, domain=domain)
    made.name = made.outputs[0].name = f"{node.outputs[0].name}_{inputs[0].name}_{name}"
    graph.insert_before(node, [made])
    return made.outputs[0]


def put_in_place_of(old: Any, new: Any) -> None:
    """Let all that read one value read another, which takes its name, shape and type: outputs keep their names."""
    import onnx_ir as ir

    new.shape, new.type = old.shape, old.type
    old.name, new.name = f"{old.name}_before", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def constant(graph: Any, numbers: Any) -> Any:
    """The initializer of a graph that holds these numbers, an array of int64; made where there is none."""
    import onnx_ir as ir

    shape = "x".join(map(str, numbers.shape))
    name = f"int64_{shape}_" + "_".join(str(number).replace("-", "minus") for number in numbers.reshape(-1).tolist())
    if name not in graph.initializers:
        tensor = ir.tensor(numbers.astype("int64"), name=name)
        value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
