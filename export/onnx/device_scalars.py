"""Sizes that the GPU calculates with, made there: `Range` reads its limits on the CPU and writes on the GPU."""

from __future__ import annotations

from typing import Any

from remixer.export.onnx.cuda_kernels import cuda_kernels
from remixer.export.onnx.placement import place


def scalars_on_device(model: Any) -> None:
    """Edit an onnx_ir.Model in place, so that whole numbers that go from the CPU to the GPU aren't copied.

    A number n becomes Range(n, n + 1), squeezed. If it is cast on the CPU, the GPU casts the one that it has. What is
    no single number is left as it is.
    """
    kernels = cuda_kernels()
    placed = place(model, kernels)
    on_host = set(placed.host)
    for name in [each.value for each in placed.copies if not each.to_host]:
        value = next(each for node in model.graph for each in node.outputs if each.name == name)
        uses = list(value.uses())
        made = _made_on_device(model, value)
        for node, index in uses if made is not None else ():
            if node.name not in on_host and index not in kernels.host_inputs.get(node.op_type, ()):
                node.replace_input_with(index, made)


def _made_on_device(model: Any, value: Any) -> Any:
    """The same number as a value of the GPU, computed right behind the given one; None if it is no single number."""
    import onnx_ir as ir

    cast, whole = None, value
    if value.producer().op_type == "Cast":
        cast, whole = value.producer(), value.producer().inputs[0]
    if whole.dtype != ir.DataType.INT64 or whole.shape is None or len(whole.shape):
        return None
    last = value.producer()

    def constant(suffix: str, number: Any) -> Any:
        tensor = ir.tensor(number, dtype=ir.DataType.INT64, name=f"{value.name}_{suffix}")
        made = ir.Value(
            name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        model.graph.register_initializer(made)
        return made

    def add(operator: str, inputs: list[Any], suffix: str, shape: list[int], **more: Any) -> Any:
        nonlocal last
        out = ir.Value(name=f"{value.name}_{suffix}", shape=ir.Shape(shape), type=ir.TensorType(whole.dtype))
        node = ir.Node("", operator, inputs, outputs=[out], name=f"node_{value.name}_{suffix}", **more)
        model.graph.insert_after(last, node)
        last = node
        return out

    one = constant("one", 1)
    limit = add("Add", [whole, one], "next", [])
    row = add("Range", [whole, limit, one], "row", [1])
    made = add("Squeeze", [row, constant("axes", [0])], "on_device", [])
    if cast is not None:
        made = add("Cast", [made], "cast_on_device", [], attributes=list(cast.attributes.values()))
        made.type = value.type
    return made
