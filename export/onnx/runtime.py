"""The onnxruntime that is installed: whether it can do what is asked of it, and sessions that run graphs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from remixer.export.errors import ExportError, OnnxInstallError, ProviderError

Provider = Literal["cpu", "cuda"]
PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# By default onnxruntime multiplies float32 on a GPU in TF32, which has ten bits.
_OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def check_install(provider: Provider) -> None:
    """Raise unless everything that an export for this provider needs is there and usable.

    Raises:
        OnnxInstallError: a package is missing, or two packages hold the same import name.
        ProviderError: onnxruntime doesn't have this provider, or can't load what it needs.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"provider must be one of {', '.join(PROVIDERS)}, got {provider!r}")
    missing = [name for name in ("onnx", "onnxscript", "onnx_ir") if importlib.util.find_spec(name) is None]
    found = installed_runtimes()
    if missing or not found:
        missing += [] if found else ["onnxruntime"]
        raise OnnxInstallError(
            f"ONNX export needs {' and '.join(missing)}, not installed here. What to do: pip install 'remixer[onnx]', "
            "or 'remixer[onnx-gpu]' on a machine with an NVIDIA GPU"
        )
    if len(found) > 1:
        raise OnnxInstallError(
            f"{' and '.join(found)} are both installed, and each has overwritten files of the other. What to do: "
            f"pip uninstall -y {' '.join(found)}, then install the one that fits this machine"
        )
    if provider == "cuda":
        _check_cuda(found[0])


def installed_runtimes() -> list[str]:
    """The distributions that provide the import name onnxruntime."""
    found = []
    for name in _RUNTIMES:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _check_cuda(package: str) -> None:
    import onnxruntime as ort

    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise ProviderError(
            f"this onnxruntime ({package} {ort.__version__}) was built without CUDA. What to do: pip uninstall "
            f"{package}, pip install onnxruntime-gpu, or export with provider='cpu'"
        )
    if not _loads_cuda():
        raise ProviderError(
            "onnxruntime-gpu is installed, but its CUDA provider doesn't load here: a CUDA or cuDNN library, or the "
            "GPU itself, is missing. onnxruntime would run on the CPU and say nothing. What to do: install them, or "
            "export with provider='cpu'"
        )


def _loads_cuda() -> bool:
    """Whether a session really gets the CUDA provider: that it is listed says only that it was built."""
    import onnx
    import onnxruntime as ort

    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "probe",
        [value("x", onnx.TensorProto.FLOAT, [1])],
        [value("y", onnx.TensorProto.FLOAT, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what is missing is said by the error
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cuda"]])
    return PROVIDERS["cuda"] in session.get_providers()


class Session:
    """A graph in onnxruntime, called with torch tensors; float32 is float32 on a GPU too, not TF32.

    Args:
        path: of the file.
        provider: where it runs.
        threads: how many the CPU provider uses; 0 leaves it to onnxruntime.

    Raises:
        ExportError: onnxruntime refuses the graph.
        ProviderError: it would run the graph on another provider.
    """

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads
        # Threads that spin between runs take the cores from whatever else runs, torch included.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            asked = [(PROVIDERS[provider], _OPTIONS[provider])]
            self._session = ort.InferenceSession(str(path), options, providers=asked)
        except Exception as error:  # onnxruntime has an exception class per status
            raise ExportError(f"onnxruntime refuses the graph: {str(error).splitlines()[0]}") from error
        if PROVIDERS[provider] not in self._session.get_providers():
            raise ProviderError(
                f"onnxruntime doesn't get {PROVIDERS[provider]} here, and would run the graph on the CPU and say "
                "nothing. What to do: install what it needs, or ask for provider='cpu'"
            )
        self.inputs: list[str] = [each.name for each in self._session.get_inputs()]
        self.outputs: list[str] = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str] | None = None) -> list[Any]:
        """The outputs, all or some, as torch tensors.

        Args:
            inputs: tensors by the names of the graph's inputs; further ones are left out.
            outputs: names, or None for all.
        """
        feeds = {name: inputs[name].detach().cpu().numpy() for name in self.inputs}
        return [torch.from_numpy(each) for each in self._session.run(outputs and list(outputs), feeds)]

    @staticmethod
    def value_of(tensor: torch.Tensor) -> Any:
        """A tensor as onnxruntime's own value."""
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(tensor.detach().cpu().numpy())

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """All outputs from all inputs, as onnxruntime's own values: nothing is copied to be handed on."""
        return list(self._session.run_with_ort_values(None, dict(inputs)))
