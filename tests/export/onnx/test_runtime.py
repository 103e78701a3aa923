"""What is said where onnxruntime is missing, doubled, or can't do what is asked."""

from importlib import metadata

import pytest
import torch

from remixer.export import ExportError, OnnxInstallError, ProviderError, to_onnx
from remixer.export.onnx import runtime


def pretend(monkeypatch, *installed):
    monkeypatch.setattr(runtime, "installed_runtimes", lambda: list(installed))


def test_one_runtime_is_fine():
    assert len(runtime.installed_runtimes()) == 1
    runtime.check_install("cpu")


def test_no_runtime(monkeypatch):
    pretend(monkeypatch)
    with pytest.raises(OnnxInstallError, match=r"needs onnxruntime, not installed here.*pip install 'remixer\[onnx\]'"):
        runtime.check_install("cpu")


def test_no_onnx_at_all(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    pretend(monkeypatch)
    with pytest.raises(OnnxInstallError, match="needs onnx and onnxscript and onnx_ir and onnxruntime"):
        runtime.check_install("cpu")


def test_two_runtimes_have_overwritten_one_another(monkeypatch):
    pretend(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    told = r"onnxruntime and onnxruntime-gpu are both installed.*pip uninstall -y onnxruntime onnxruntime-gpu"
    with pytest.raises(OnnxInstallError, match=told):
        runtime.check_install("cpu")


def test_what_is_installed_is_asked_of_the_distributions(monkeypatch):
    def distribution(name):
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(metadata, "distribution", distribution)
    assert runtime.installed_runtimes() == ["onnxruntime-gpu"]


def test_an_unknown_provider():
    with pytest.raises(ProviderError, match="provider must be one of cpu, cuda, got 'tpu'"):
        runtime.check_install("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is that of machines without a GPU")
def test_cuda_that_cannot_be_used_is_an_error_before_anything_is_done(tmp_path):
    with pytest.raises(ProviderError, match="export with provider='cpu'"):
        runtime.check_install("cuda")


def test_cuda_that_is_built_in_and_does_not_load(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(runtime, "_loads_cuda", lambda: False)
    with pytest.raises(ProviderError, match="onnxruntime would run on the CPU and say nothing"):
        runtime.check_install("cuda")


def test_float32_is_not_rounded_to_tf32_on_a_gpu(monkeypatch):
    import onnxruntime

    asked = []

    class Refusing:
        def __init__(self, path, options, providers):
            asked.extend(providers)

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Refusing)
    with pytest.raises(ProviderError, match="would run the graph on the CPU"):
        runtime.Session("model.onnx", "cuda")
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"})]


def test_what_is_no_rewritten_model(tmp_path):
    with pytest.raises(ExportError, match=r"to_onnx takes what remixer.remix gave, got Linear.*\"softmax\""):
        to_onnx(torch.nn.Linear(2, 2), tmp_path / "model.onnx")
