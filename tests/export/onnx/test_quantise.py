"""Files with weights in eight bits, through the whole export."""

import json

import onnx
import onnx_ir
import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort
from remixer.export import ExportError, OnnxMismatchError, to_onnx
from remixer.export.onnx import effect, write
from remixer.export.onnx.precision import check_precision
from remixer.export.onnx.quantise import quantise
from remixer.export.onnx.runtime import Session
from remixer.rewrite.program import Program


@pytest.fixture(scope="module")
def rewritten():
    """Two layers with the same weights, one with a mixer of each kind."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), num_layers=2).eval()
    mixers = {"layers.0*": LongShort(window=16, rank=4), "*": "toeplitz"}
    return remixer.remix(model, mixers, torch.randn(2, 12, 32))


@pytest.fixture(scope="module")
def made(rewritten, tmp_path_factory):
    """The path and the manifest."""
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    return path, to_onnx(rewritten, path, precision="int8")


def test_the_manifest_says_what_it_does_to_the_outputs(made):
    path, manifest = made
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    assert manifest.precision == "int8"
    assert manifest.error < 1e-5
    assert 1e-5 < manifest.effect["error"] < 0.1
    assert manifest.effect["cosine"] > 0.99
    assert manifest.effect["provider"] == "CPUExecutionProvider"
    assert manifest.effect["trials"] == manifest.trials
    assert json.loads(path.with_name("model.onnx.json").read_text())["effect"] == manifest.effect


def test_the_file_is_near_torch_at_other_sizes(made, rewritten):
    x = torch.randn(3, 50, 32)
    with torch.no_grad():
        want = rewritten(x)
    (got,) = Session(made[0])({"input": x})
    assert 1e-5 < float((got - want).abs().max()) < 0.1


def test_weights_that_are_too_many_for_one_file(made, rewritten, monkeypatch, tmp_path):
    monkeypatch.setattr(write, "LARGEST_FILE", 0)
    path, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    to_onnx(rewritten, path)
    in_float = beside.stat().st_size
    to_onnx(rewritten, path, precision="int8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data", "model.onnx.json"]
    assert beside.stat().st_size < in_float
    x = {"input": torch.randn(3, 50, 32)}
    torch.testing.assert_close(Session(path)(x)[0], Session(made[0])(x)[0])
    to_onnx(rewritten, path)
    monkeypatch.undo()
    assert beside.stat().st_size == in_float
    to_onnx(rewritten, path)
    assert not beside.exists()


def test_weights_are_quantised_and_mixers_are_not(made):
    graph = onnx.load(made[0]).graph
    # Of each layer query, key and value, which are one product, the output, and the two of the MLP.
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 2 * 4
    of_encoder = [each for each in graph.initializer if "encoder" in each.name and "weight" in each.name]
    assert of_encoder
    assert {each.data_type for each in of_encoder} == {onnx.TensorProto.FLOAT}
    scales = [each for each in graph.initializer if each.name.endswith("_scale")]
    assert scales
    assert all(len(each.dims) == 1 and each.dims[0] >= 32 for each in scales)  # one for each output channel


def test_a_useless_file_is_an_error(made, rewritten, monkeypatch):
    monkeypatch.setattr(effect, "LOWEST_COSINE", 0.9999999)
    with pytest.raises(OnnxMismatchError, match=r"the int8 file is too far from torch in .*, on inputs .* cosine"):
        effect.measure(Program.of(rewritten), made[0], "cpu", "int8", 1e-4)


def test_what_is_not_finite_is_an_error(made, rewritten, monkeypatch):
    class Broken(Session):
        def __call__(self, *args):
            return [each * float("nan") for each in super().__call__(*args)]

    monkeypatch.setattr(effect, "Session", Broken)
    with pytest.raises(OnnxMismatchError, match="cosine nan"):
        effect.measure(Program.of(rewritten), made[0], "cpu", "int8", 1e-4)


def test_an_error_leaves_no_file(model, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(effect, "LOWEST_COSINE", 1.1)
    small = remixer.remix(model, "softmax", inputs)
    with pytest.raises(OnnxMismatchError, match="What to do: export with precision='float32'"):
        to_onnx(small, tmp_path / "model.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


def test_who_may_have_which_precision():
    with pytest.raises(ExportError, match=r"'int8' is not for provider='cuda': .*provider='cpu'"):
        check_precision("int8", "cuda")
    with pytest.raises(ExportError, match=r"'float16' is not for provider='cpu': .*float32.*provider='cuda'"):
        check_precision("float16", "cpu")
    with pytest.raises(ExportError, match="precision must be one of float32, float16, int8, got 'int4'"):
        check_precision("int4", "cpu")


def test_gemms_that_share_a_weight(tmp_path):
    nodes = [onnx.helper.make_node("Gemm", [x, "w"], [y], name=y, transB=1) for x, y in (("x", "y"), ("y", "z"))]
    value = onnx.helper.make_tensor_value_info
    weight = torch.randn(8, 8)
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [value("z", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(weight.numpy(), "w")],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    quantise(onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)), tmp_path / "z.onnx")
    x = torch.randn(5, 8)
    want = x @ weight.T @ weight.T
    (got,) = Session(tmp_path / "z.onnx")({"x": x})
    assert float((got - want).abs().max() / want.abs().max()) < 0.05
    assert [file.name for file in tmp_path.iterdir()] == ["z.onnx"]
