"""Rotary position embeddings, before and after, in graphs written here and in a pretrained model's architecture."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import onnxruntime
import pytest
import torch

import remixer
from remixer.export import OnnxDecoder, to_onnx_decoder
from remixer.export.onnx.rotary import rotate_at_once

HEAD = """<ir_version: 9, opset_import: ["" : 20]>
graph (float[B, 3, T, 4] x, float[R, T, 2] angle) => (float[B, 3, T, 4] y)
<int64[1] zero = {0}, int64[1] half = {2}, int64[1] one = {1}, int64[1] axis = {3},
 int64[1] end = {9223372036854775807}, int64[2] halves = {2, 2}, int64[2] uneven = {1, 3}, float scale = {1.5}>
{ %s }
"""
TABLES = """
    both = Concat<axis: int = -1>(angle, angle)
    c = Cos(both) s = Sin(both)
    cos = Unsqueeze(c, one) sin = Unsqueeze(s, one)
"""
SCALED = """
    both = Concat<axis: int = -1>(angle, angle)
    c = Cos(both) c1 = Mul(c, scale) s = Sin(both) s1 = Mul(scale, s)
    cos = Unsqueeze(c1, one) sin = Unsqueeze(s1, one)
"""
SLICES = "low = Slice(x, zero, half, axis, one) high = Slice(x, half, end, axis, one)"
TURN = "n = Neg(high) t = Concat<axis: int = -1>(n, low)"
SUM = "p = Mul(x, cos) q = Mul(t, sin) y = Add(p, q)"


def model_of(body, rows):
    """With shapes of all values; `rows` of the table: 1 for all samples, or B, one for each."""
    model = ir.from_onnx_text((HEAD % body).replace("R, T", f"{rows}, T"))
    shapes = {"cos": [rows, 1, "T", 4], "sin": [rows, 1, "T", 4]}
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = ir.Shape(shapes.get(value.name, ["B", 3, "T", 4]))
    for value in model.graph.initializers.values():
        value.shape = value.const_value.shape
    return model


def ran(model, folder, samples, rows):
    ir.save(model, folder / "model.onnx")
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((samples, 3, 5, 4), dtype=np.float32),
        "angle": rng.standard_normal((rows, 5, 2), dtype=np.float32),
    }
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)[0]


BEFORE = [
    TABLES + SLICES + TURN + SUM,
    SCALED + SLICES + TURN + SUM,
    TABLES + "low, high = Split<axis: int = 3>(x, halves)" + TURN + SUM,
    TABLES + SLICES + TURN + "p = Mul(cos, x) q = Mul(sin, t) y = Add(q, p)",
]


@pytest.mark.parametrize("rows", [1, "B"])
@pytest.mark.parametrize("body", BEFORE)
def test_a_rotation_is_one_operator(body, rows, tmp_path):
    before, after = model_of(body, rows), model_of(body, rows)
    rotate_at_once(after)
    ir.passes.common.RemoveUnusedNodesPass()(after)
    found = Counter(node.op_type for node in after.graph)
    assert found["RotaryEmbedding"] == 1
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert found["Neg"] == found["Add"] == 0
    for samples in (1, 3):
        given = samples if rows == "B" else 1
        expected, got = (ran(model, tmp_path, samples, given) for model in (before, after))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        # The halves of the table differ.
        TABLES.replace("(angle, angle)", "(angle, other)").replace("both", "other = Sigmoid(angle) both", 1)
        + SLICES
        + TURN
        + SUM,
        TABLES + SLICES + "n = Neg(low) t = Concat<axis: int = -1>(n, high)" + SUM,  # the halves stay where they are
        TABLES + SLICES + "n = Neg(low) t = Concat<axis: int = -1>(high, n)" + SUM,  # turned the other way
        TABLES + "low, high = Split<axis: int = 3>(x, uneven)" + TURN + SUM,  # no halves
        TABLES + SLICES + TURN + "z = Sigmoid(x) p = Mul(z, cos) q = Mul(t, sin) y = Add(p, q)",  # of two tensors
        TABLES + SLICES + TURN + "p = Mul(x, scale) q = Mul(t, sin) y = Add(p, q)",  # by a number, which has no halves
        TABLES + SLICES + TURN + "p = Mul(x, cos) q = Mul(t, sin) y = Sub(p, q)",
    ],
)
def test_what_is_no_rotation_stays(body):
    model = model_of(body, 1)
    rotate_at_once(model)
    assert "RotaryEmbedding" not in {node.op_type for node in model.graph}


def test_a_table_of_unknown_rows_stays():
    model = model_of(BEFORE[0], "R")
    rotate_at_once(model)
    assert "RotaryEmbedding" not in {node.op_type for node in model.graph}


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 60}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2)).eval()
    ids = torch.randint(0, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return remixer.remix(model, "softmax", inputs), inputs


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_decoder_turns_and_projects_by_one_operator_each(llama, tmp_path, precision):
    model, inputs = llama
    manifest = to_onnx_decoder(model, tmp_path / "out", length=40, precision=precision)
    assert manifest.nodes["com.microsoft.RotaryEmbedding"] == 4
    if precision == "float32":
        # Two layers: queries, keys and values; scores; what they choose; out; gate and up; down. And the head.
        assert manifest.nodes["MatMul"] == 2 * 6 + 1
        assert manifest.nodes["Split"] == 2 * 2
        assert "Transpose" not in manifest.nodes or manifest.nodes["Transpose"] <= 2  # of the keys
    ids = OnnxDecoder(tmp_path / "out").generate(inputs["input_ids"], 6, mask=inputs["attention_mask"])
    assert ids.shape == (2, 15)
    if precision == "int8":
        return
    for _ in range(6):  # by the whole model, all tokens again
        mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, -1:]], 1)
        with torch.no_grad():
            following = model(**inputs)["logits"][:, -1].argmax(-1, keepdim=True)
        inputs = {
            "input_ids": torch.cat([inputs["input_ids"], following], 1),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        }
    assert torch.equal(ids, inputs["input_ids"])
