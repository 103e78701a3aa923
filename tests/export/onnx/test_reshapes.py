"""Reshapes and transposes that move nothing, before and after."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import onnxruntime
import pytest

from remixer.export.onnx.reshapes import merge_reshapes

HEAD = """<ir_version: 9, opset_import: ["" : 20]>
graph (float[N, 1, 12] x) => (float[A, B, C, D] y)
<int64[1] three = {3}, int64[1] four = {4}, int64[1] one = {1}, int64[4] split = {0, 1, 3, 4},
 int64[4] back = {-1, 3, 2, 2}, int64[1] zero = {0}>
{
    n = Shape<start: int = 0, end: int = 1>(x)
    %s
}
"""
HEADS = "s = Concat<axis: int = 0>(n, one, three, four) h = Reshape(x, s)"


def model_of(body):
    return ir.passes.common.ShapeInferencePass()(ir.from_onnx_text(HEAD % body)).model


def operators(model):
    return Counter(node.op_type for node in model.graph)


def ran(model, folder, rows):
    ir.save(model, folder / "model.onnx")
    x = np.random.default_rng(0).standard_normal((rows, 1, 12), dtype=np.float32)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("body", "gone", "come"),
    [
        # A head's axis goes before that of the only token.
        (f"{HEADS} y = Transpose<perm: ints = [0, 2, 1, 3]>(h)", {"Transpose": 1}, {"Reshape": 1}),
        (f"{HEADS} t = Transpose<perm: ints = [0, 2, 1, 3]>(h) y = Reshape(t, back)", {"Transpose": 1}, {"Reshape": 1}),
        (f"{HEADS} y = Reshape(h, back)", {}, {}),
        # What moves: heads behind their entries, and samples, of which there may be many, behind the token.
        (f"{HEADS} y = Transpose<perm: ints = [0, 1, 3, 2]>(h)", {}, {}),
        (f"{HEADS} y = Transpose<perm: ints = [2, 1, 0, 3]>(h)", {}, {}),
        # Two sizes that nobody knows before.
        ("s = Concat<axis: int = 0>(one, n, n, four) h = Expand(x, one) y = Unsqueeze(h, one)", {}, {}),
    ],
)
def test_before_and_after(body, gone, come, tmp_path):
    before, after = model_of(body), model_of(body)
    merge_reshapes(after)
    assert operators(before) - operators(after) == Counter(gone)
    assert operators(after) - operators(before) == Counter(come)
    for rows in (1, 5):
        np.testing.assert_array_equal(ran(after, tmp_path, rows), ran(before, tmp_path, rows))


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (f"{HEADS} y = Reshape(h, back)", "x"),
        (f"{HEADS} t = Transpose<perm: ints = [0, 2, 1, 3]>(h) y = Reshape(t, back)", "x"),
        (f"{HEADS} t = Transpose<perm: ints = [0, 1, 3, 2]>(h) y = Reshape(t, back)", "t"),
        (f"{HEADS} t = Sigmoid(h) y = Reshape(t, back)", "t"),
        # The zero means the first size of what is reshaped, whose number of samples is left open.
        (f"{HEADS} z = Concat<axis: int = 0>(zero, three, four, one) y = Reshape(h, z)", "x"),
    ],
)
def test_what_the_last_one_reads(body, read, tmp_path):
    before, after = model_of(body), model_of(body)
    merge_reshapes(after)
    assert after.graph.outputs[0].producer().inputs[0].name == read
    for rows in (1, 5):
        np.testing.assert_array_equal(ran(after, tmp_path, rows), ran(before, tmp_path, rows))


def test_two_open_sizes_stay_as_they_are():
    model = model_of("s = Concat<axis: int = 0>(n, n, three, four) h = Reshape(x, s) y = Reshape(h, s)")
    merge_reshapes(model)
    assert model.graph.outputs[0].producer().inputs[0].name == "h"
