"""A graph and its weights as one file, or two, without a copy of the weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LARGEST_FILE = 2**31 - 2**20  # what protobuf takes, and room for the graph
# Fields of messages as numbered in onnx.proto; type 2 of the wire says that a length follows, and so many bytes.
_GRAPH_OF_MODEL, _INITIALIZER_OF_GRAPH, _RAW_DATA_OF_TENSOR = (bytes([number << 3 | 2]) for number in (7, 5, 9))


def write(model: Any, path: Path) -> None:
    """Write an onnx_ir.Model; weights that are too many for one file go to `path` with ".data" behind it.

    protobuf would hold all of the file in memory, beside a message that holds all weights. Here weights are written
    one after the other, each behind its header, since how long they are is known before.
    """
    import onnx_ir as ir

    if too_large(model):
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    tensors = [value.const_value for value in model.graph.initializers.values()]
    proto = _without_data(model)
    starts = [_start(weight, tensor.nbytes) for weight, tensor in zip(proto.graph.initializer, tensors, strict=True)]
    proto.graph.ClearField("initializer")
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    whole = len(graph) + sum(len(start) + tensor.nbytes for start, tensor in zip(starts, tensors, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _GRAPH_OF_MODEL + _varint(whole) + graph)
        for start, tensor in zip(starts, tensors, strict=True):
            file.write(start)
            file.write(tensor.tobytes())


def too_large(model: Any) -> bool:
    """Whether the weights of an onnx_ir.Model don't fit into one file."""
    return weight_bytes(model) > LARGEST_FILE


def weight_bytes(model: Any) -> int:
    """How many bytes the weights of an onnx_ir.Model take."""
    return sum(int(value.const_value.nbytes) for value in model.graph.initializers.values())


def _without_data(model: Any) -> Any:
    """The protobuf message of a model, whose weights are said to lie elsewhere; the model stays what it is."""
    import onnx_ir as ir

    held = {value: value.const_value for value in model.graph.initializers.values()}
    try:
        for value, tensor in held.items():
            value.const_value = ir.ExternalTensor(
                "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name
            )
        return ir.to_proto(model)
    finally:
        for value, tensor in held.items():
            value.const_value = tensor


def _start(weight: Any, size: int) -> bytes:
    """An initializer up to its data, of which there are `size` bytes."""
    weight.ClearField("external_data")
    weight.ClearField("data_location")
    header = weight.SerializeToString() + _RAW_DATA_OF_TENSOR + _varint(size)
    return _INITIALIZER_OF_GRAPH + _varint(len(header) + size) + bytes(header)


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first; the eighth says that more follow."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])
