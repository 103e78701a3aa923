"""Graphs in float16 with islands in float32, run by the CPU provider, which casts where it has no kernel."""

import onnx_ir as ir
import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort
from remixer.export import OnnxMismatchError, check_cuda, to_onnx
from remixer.export.onnx import effect, exporting, runtime
from remixer.export.onnx.runtime import Session

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


@pytest.fixture(autouse=True)
def _as_if_there_were_a_gpu(monkeypatch):
    monkeypatch.setattr(exporting, "check_install", lambda provider: None)
    monkeypatch.setitem(runtime.PROVIDERS, "cuda", "CPUExecutionProvider")


@pytest.mark.parametrize(
    "first",
    ["softmax", pytest.param(LongShort(window=16, rank=4), marks=pytest.mark.slow)],
    ids=["softmax", "long_short"],
)
def test_products_in_half_and_islands_in_single_precision(causal_model, inputs, tmp_path, first):
    small = remixer.remix(causal_model, {"layers.0": first, "*": "toeplitz"}, inputs)
    path = tmp_path / "model.onnx"
    manifest = to_onnx(small, path, provider="cuda", precision="float16")
    assert manifest.inputs["x"]["dtype"] == manifest.outputs["states"]["dtype"] == "float"
    assert manifest.error < 1e-5
    assert 1e-5 < manifest.effect["error"] < 4e-3
    assert manifest.effect["cosine"] > 0.99999
    assert manifest.cuda["problems"] == check_cuda(path).problems == []
    graph = ir.load(path).graph
    dtypes: dict[str, set[ir.DataType]] = {}
    for node in graph:
        dtypes.setdefault(node.op_type, set()).add(node.outputs[0].dtype)
    assert HALF in dtypes["MatMul"]
    assert HALF in dtypes["LayerNormalization"]
    for single in {"Softmax", "Exp", "Cos", "Sin", "ReduceL2", "ReduceSum", "Range"} & dtypes.keys():
        assert HALF not in dtypes[single], single
    own = [node for node in graph if node.metadata_props.get("remixer.float32") == "LoweredToeplitz"]
    assert {"MatMul", "Cos", "Exp"} <= {node.op_type for node in own}
    assert all(value.dtype != HALF for node in own for value in node.outputs)
    call = {"x": torch.randn(2, 70, 32), "padding": torch.ones(2, 70, dtype=torch.bool)}
    with torch.no_grad():
        want = small(**call)["states"]
    session = Session(path)
    assert float((session(call)[session.outputs.index("states")] - want).abs().max()) < 0.02


def test_numbers_that_half_precision_has_not_stay(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.linear = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 16)

        def forward(self, x):
            x = self.linear(self.layer(x) * 1e5 / 1e5)
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    small = remixer.remix(Wide().eval(), "softmax", torch.randn(2, 9, 16))
    manifest = to_onnx(small, tmp_path / "model.onnx", provider="cuda", precision="float16")
    assert manifest.effect["error"] < 4e-3


def test_an_effect_that_is_too_large_is_an_error(model, inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(effect.TOLERANCE, torch.float16, 1e-6)
    small = remixer.remix(model, "softmax", inputs)
    with pytest.raises(
        OnnxMismatchError, match=r"the float16 file is too far .* allowed a difference of 1e-05.*tolerance"
    ):
        to_onnx(small, tmp_path / "model.onnx", provider="cuda", precision="float16", tolerance=1e-5)
    assert not list(tmp_path.iterdir())
