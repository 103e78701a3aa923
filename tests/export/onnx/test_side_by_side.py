"""Products with several weights, before and after."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from remixer.export.onnx.side_by_side import put_side_by_side

HEAD = """<ir_version: 9, opset_import: ["" : 20]>
graph (float[N, 2] x, float[2, 3] given) => (float[N, M] y)
<float[2, 3] a = {1, 2, 3, 4, 5, 6}, float[2, 3] b = {-1, 2, -3, 4, -5, 6}, float[2, 1] c = {7, 8}>
{ %s }
"""
SUM = "y = Add(p, q)"


def model_of(body):
    return ir.from_onnx_text(HEAD % body)


def ran(model, folder, rows):
    ir.save(model, folder / "model.onnx")
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((rows, 2), dtype=np.float32), "given": np.ones((2, 3), dtype=np.float32)}
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.parametrize(
    ("body", "products", "pieces"),
    [
        (f"p = MatMul(x, a) q = MatMul(x, b) {SUM}", 1, 1),
        (f"p = MatMul(x, a) q = MatMul(x, c) {SUM}", 1, 1),
        (f"p = MatMul(x, a) r = MatMul(x, c) s = MatMul(x, b) q = Mul(r, s) {SUM}", 1, 1),
        (f"p = MatMul(x, a) z = Sigmoid(x) q = MatMul(z, b) {SUM}", 2, 0),  # not of one tensor
        (f"p = MatMul(x, a) q = MatMul(x, given) {SUM}", 2, 0),  # a weight that isn't the model's
        (f"p = MatMul(x, a) q = MatMul(x, a) {SUM}", 2, 0),  # one weight twice
        ("y = MatMul(x, a)", 1, 0),
    ],
)
def test_before_and_after(body, products, pieces, tmp_path):
    before, after = model_of(body), model_of(body)
    put_side_by_side(after)
    found = Counter(node.op_type for node in after.graph)
    assert (found["MatMul"], found["Split"]) == (products, pieces)
    for rows in (1, 7):
        np.testing.assert_allclose(ran(after, tmp_path, rows), ran(before, tmp_path, rows), rtol=1e-6)


def test_weights_are_put_together_when_they_are_written():
    model = model_of(f"p = MatMul(x, a) q = MatMul(x, c) {SUM}")
    put_side_by_side(model)
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    weight = product.inputs[1].const_value
    assert isinstance(weight, ir.LazyTensor)
    assert weight.nbytes == 32
    np.testing.assert_array_equal(weight.numpy(), [[1, 2, 3, 7], [4, 5, 6, 8]])


def test_what_stays_in_float32_keeps_to_itself():
    model = model_of(f"p = MatMul(x, a) q = MatMul(x, b) {SUM}")
    next(iter(model.graph)).metadata_props["remixer.float32"] = "LoweredToeplitz"
    put_side_by_side(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul", "Add"]


def test_dtypes_are_known():
    model = model_of(f"p = MatMul(x, a) q = MatMul(x, c) {SUM}")
    for node in model.graph:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    put_side_by_side(model)
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}


def test_outputs_keep_their_names(tmp_path):
    text = HEAD.replace("(float[N, M] y)", "(float[N, 3] y, float[N, 1] z)") % "y = MatMul(x, a) z = MatMul(x, c)"
    model = ir.from_onnx_text(text)
    put_side_by_side(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Split"]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert ran(model, tmp_path, 4).shape == (4, 3)
