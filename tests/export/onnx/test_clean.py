"""Spellings that onnxruntime does well, before and after."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from remixer.export.onnx.clean import clean


def model_of(text):
    head = '<ir_version: 9, opset_import: ["" : 20]>\ngraph (float[N, 8] x, float[8] w) => (float[N, 8] y) '
    return ir.from_onnx_text(head + text)


def operators(model):
    return Counter(node.op_type for node in model.graph)


def ran(model, folder):
    ir.save(model, folder / "model.onnx")
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((5, 8), dtype=np.float32), "w": rng.standard_normal(8, dtype=np.float32)}
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


NORM = "{ s = Mul(x, x) m = Sigmoid(s) r = Sqrt(m) q = Reciprocal(r) n = Mul(%s) y = Mul(w, n) }"


@pytest.mark.parametrize(
    ("text", "gone", "come"),
    [
        (NORM % "x, q", {"Reciprocal": 1, "Mul": 1}, {"Div": 1}),
        (NORM % "q, x", {"Reciprocal": 1, "Mul": 1}, {"Div": 1}),
        ("{ s = Sigmoid(x) q = Reciprocal(s) y = Mul(x, q) }", {}, {}),  # no root
        ("{ s = Sigmoid(x) r = Sqrt(s) q = Reciprocal(r) y = Add(x, q) }", {}, {}),  # no factor
        ("{ a = Add(x, x) y = LayerNormalization(a, w) }", {"Add": 1}, {"Sum": 1}),
        ("{ a = Add(x, x) y = Sigmoid(a) }", {}, {}),
        ("{ t = Transpose<perm=[0, 1]>(x) y = Sigmoid(t) }", {"Transpose": 1}, {}),
        ("{ s = Sigmoid(x) y = Transpose<perm=[0, 1]>(s) }", {"Transpose": 1}, {}),
        ("{ t = Transpose<perm=[1, 0]>(x) s = Sigmoid(t) y = Transpose(s) }", {}, {}),
        # An input would be the output: what is left is a reshape, which costs less.
        ("{ y = Transpose<perm=[0, 1]>(x) }", {"Transpose": 1}, {"Reshape": 1}),
    ],
)
def test_before_and_after(text, gone, come, tmp_path):
    before, after = model_of(text), model_of(text)
    clean(after, "cpu")
    assert operators(before) - operators(after) == Counter(gone)
    assert operators(after) - operators(before) == Counter(come)
    assert [value.name for value in after.graph.outputs] == ["y"]
    np.testing.assert_allclose(ran(after, tmp_path), ran(before, tmp_path), rtol=1e-5, atol=1e-6)


def test_the_paths_of_a_machine_stay_out():
    model = model_of("{ y = Sigmoid(x) }")
    node = next(iter(model.graph))
    node.metadata_props.update(
        {"pkg.torch.onnx.stack_trace": "/home/me/model.py", "pkg.torch.onnx.name_scopes": "layer"}
    )
    clean(model, "cpu")
    assert node.metadata_props == {"pkg.torch.onnx.name_scopes": "layer"}
