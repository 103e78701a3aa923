"""Files written weight by weight."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from remixer.export.onnx import write as writing
from remixer.export.onnx.write import weight_bytes, write


def model_of(weights):
    """A graph that gives its weights."""
    values = [
        ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        for name, tensor in weights.items()
    ]
    nodes = [ir.node("Identity", [value], name=f"of_{value.name}") for value in values]
    outputs = [node.outputs[0] for node in nodes]
    for value, output in zip(values, outputs, strict=True):
        output.name, output.shape, output.type = f"{value.name}_out", value.shape, value.type
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, name="weights", opset_imports={"": 20})
    return ir.Model(graph, ir_version=10, producer_name="test")


WEIGHTS = {
    "float": ir.tensor(np.arange(300, dtype=np.float32).reshape(3, 100)),
    "transposed": ir.tensor(np.arange(12, dtype=np.float32).reshape(3, 4).T),
    "scalar": ir.tensor(np.array(7, dtype=np.int64)),
    "nothing": ir.tensor(np.zeros((0, 5), dtype=np.float32)),
    "bytes": ir.tensor(np.arange(-64, 64, dtype=np.int8)),
    "half": ir.tensor(np.linspace(0, 1, 9).astype(np.float16)),
    "bfloat": ir.tensor(np.linspace(0, 1, 9).astype(ml_dtypes.bfloat16)),
    "lazy": ir.LazyTensor(
        lambda: ir.tensor(np.full((2, 2), 3, np.float32)), dtype=ir.DataType.FLOAT, shape=ir.Shape([2, 2])
    ),
}


def same(model, proto):
    assert {each.name for each in proto.graph.initializer} == set(model.graph.initializers)
    for each in proto.graph.initializer:
        want = model.graph.initializers[each.name].const_value
        got = onnx.numpy_helper.to_array(each)
        np.testing.assert_array_equal(got.astype(np.float64), want.numpy().astype(np.float64))
        assert each.data_type == want.dtype
        assert got.shape == tuple(want.shape.numpy())


def test_it_is_the_file_that_onnx_ir_writes(tmp_path):
    model = model_of(WEIGHTS)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    write(model, tmp_path / "model.onnx")
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())
    ir.save(model, tmp_path / "other.onnx")
    written, other = (onnx.load(tmp_path / name) for name in ("model.onnx", "other.onnx"))
    onnx.checker.check_model(written, full_check=True)
    same(model, written)
    for proto in (written, other):
        del proto.graph.initializer[:]
    assert written == other


@pytest.mark.parametrize("size", [0, 1, 31, 32, 4095, 4096, 2**19, 2**19 + 1])
def test_lengths_of_any_number_of_bytes(size, tmp_path):
    model = model_of({"weight": ir.tensor(np.arange(size, dtype=np.float32))})
    write(model, tmp_path / "model.onnx")
    same(model, onnx.load(tmp_path / "model.onnx"))


def test_too_many_for_one_file(tmp_path, monkeypatch):
    model = model_of(WEIGHTS)
    assert weight_bytes(model) == 1200 + 48 + 8 + 0 + 128 + 18 + 18 + 16
    monkeypatch.setattr(writing, "LARGEST_FILE", 1400)
    write(model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    same(model, onnx.load(tmp_path / "model.onnx"))
