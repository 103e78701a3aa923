"""Where nodes go under the CUDA provider, and what there is no kernel for."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import remixer
from remixer import LongShort
from remixer.export import ExportError, check_cuda, to_onnx
from remixer.export.onnx import cuda_kernels, exporting
from remixer.export.onnx.cuda_check import check_model
from remixer.export.onnx.cuda_kernels import Kernel
from remixer.export.onnx.device_scalars import scalars_on_device
from remixer.export.onnx.verify import Proof

FLOAT, INT, TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def write(path, nodes, inputs, outputs, opset=20, constants=()):
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in inputs],
        [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in outputs],
        [helper.make_tensor(name, INT, [len(values)], values) for name, values in constants],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


@pytest.fixture
def _unproven(monkeypatch):
    """Exports for CUDA without a GPU; what they compute is tested elsewhere."""
    monkeypatch.setattr(exporting, "check_install", lambda provider: None)
    monkeypatch.setattr(exporting, "verify", lambda *args: Proof(1, 0.0))


@pytest.mark.usefixtures("_unproven")
@pytest.mark.parametrize("mixer", ["softmax", LongShort(window=16, rank=4), "toeplitz"], ids=lambda each: str(each)[:9])
def test_every_mixer_runs_on_the_gpu_as_a_whole(layer, mixer, tmp_path, monkeypatch):
    small = remixer.remix(layer, mixer, torch.randn(2, 12, 16))
    if mixer != "softmax":  # without this, sizes that elements are computed with would be copied
        monkeypatch.setattr(exporting, "scalars_on_device", seen := Recorder(scalars_on_device))
    manifest = to_onnx(small, tmp_path / "model.onnx", provider="cuda")
    found = check_cuda(tmp_path / "model.onnx")
    assert found.problems == []
    assert found.host
    assert manifest.cuda == found.to_dict()
    if mixer != "softmax":
        assert "is copied to the GPU for" in seen.before[0]


class Recorder:
    """A pass on a graph that keeps what was wrong before."""

    def __init__(self, run):
        self.run, self.before = run, []

    def __call__(self, graph):
        self.before += check_model(graph).problems
        self.run(graph)


@pytest.fixture
def layer():
    return nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).eval()


def test_what_has_no_kernel(tmp_path):
    nodes = [helper.make_node("StringNormalizer", ["x"], ["y"], name="words")]
    path = write(tmp_path / "a.onnx", nodes, [("x", TEXT, [3])], [("y", TEXT, [None])])
    assert check_cuda(path).problems[0] == "StringNormalizer words: CUDA has no kernel for this operator"
    nodes = [helper.make_node("Mod", ["x", "x"], ["y"], name="rest", fmod=1)]
    path = write(tmp_path / "b.onnx", nodes, [("x", TensorProto.INT16, [3])], [("y", TensorProto.INT16, [3])])
    assert check_cuda(path).problems[0] == "Mod rest: CUDA has no kernel for this operator on int16"


def test_what_is_computed_on_one_side_and_read_on_the_other(tmp_path):
    nodes = [
        helper.make_node("Neg", ["lengths"], ["negative"], name="neg"),
        helper.make_node("Neg", ["negative"], ["shape"], name="again"),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape"),
    ]
    inputs = [("x", FLOAT, ["n"]), ("lengths", INT, [2])]
    found = check_cuda(write(tmp_path / "a.onnx", nodes, inputs, [("y", FLOAT, [None, None])]))
    assert found.problems == ["shape is copied to the CPU for reshape"]


def test_shapes_from_sizes_are_no_copies(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], name="shape"),
        helper.make_node("Concat", ["size", "one"], ["wanted"], name="concat", axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"], name="reshape"),
    ]
    path = write(tmp_path / "a.onnx", nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, [None, 1])], constants=[("one", [1])])
    found = check_cuda(path)
    assert found.problems == []
    assert found.host == ["concat"]


@pytest.mark.usefixtures("_unproven")
def test_an_export_with_problems_is_refused(model, inputs, tmp_path, monkeypatch):
    known = cuda_kernels.cuda_kernels()
    poor = known._replace(kernels={name: some for name, some in known.kernels.items() if name != "Softmax"})
    monkeypatch.setattr("remixer.export.onnx.cuda_check.cuda_kernels", lambda: poor)
    small = remixer.remix(model, "softmax", inputs)
    with pytest.raises(ExportError, match=r"not run on the GPU as a whole: Softmax .*no kernel for this operator"):
        to_onnx(small, tmp_path / "model.onnx", provider="cuda")
    assert not list(tmp_path.iterdir())


def test_versions_are_matched_as_onnxruntime_does():
    types = {"T": frozenset({"float"})}
    assert Kernel(13, None, types).runs(13)
    assert not Kernel(13, None, types).runs(14)
    assert Kernel(13, 18, types).runs(14)
    assert not Kernel(13, 18, types).runs(19)


def test_a_build_that_lists_no_kernels_is_said(monkeypatch):
    fresh = cuda_kernels.cuda_kernels.__wrapped__
    monkeypatch.setattr(cuda_kernels, "installed_runtimes", lambda: ["onnxruntime-gpu"])
    monkeypatch.setattr(cuda_kernels, "_listed", list)
    assert "from a table, since the installed onnxruntime-gpu" in fresh().source
    row = ["", "MatMul", 13, 2**31 - 1, {"T": ["tensor(float)"]}]
    monkeypatch.setattr(cuda_kernels, "_listed", lambda: [row])
    assert fresh().source.startswith("the installed onnxruntime-gpu")
    assert fresh().kernels == {"MatMul": [Kernel(13, None, {"T": frozenset({"float"})})]}


def test_listing_that_takes_down_its_process_lists_nothing(monkeypatch):
    monkeypatch.setattr(cuda_kernels, "_LIST", "import os; os.kill(os.getpid(), 11)")
    assert cuda_kernels._listed() == []
    monkeypatch.setattr(cuda_kernels, "_LIST", "print('a warning')")
    assert cuda_kernels._listed() == []
