"""What stands beside an ONNX file: what it takes, what it was made from, and how it was proven."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from remixer.mixers.base import Mixer
from remixer.rewrite.program import Program


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the records of all exports hold.

    Attributes:
        inputs: of each input its dtype and shape, dynamic dimensions by name.
        outputs: the same of each output.
        opset: versions of operator sets by domain, "" being ONNX's own.
        ir_version: of the file format.
        provider: what it was exported for, "cpu" or "cuda".
        mixers: of each site that was replaced, the mixer with its options.
        trials: on how many inputs it was run beside torch.
        error: the largest difference found, relative to the largest number (1 at least) of each output.
        tolerance: what was allowed.
        nodes: how many there are of each operator.
        versions: of the packages that made it.
        seconds: that each step took.
        precision: "float32", "float16" or "int8".
        effect: what a lower precision does to the outputs, see `Effect`; `error` is that of the graph in float32.
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    opset: dict[str, int]
    ir_version: int
    provider: str
    mixers: dict[str, Any]
    trials: int
    error: float
    tolerance: float
    nodes: dict[str, int]
    versions: dict[str, str]
    seconds: dict[str, float]
    precision: str = "float32"
    effect: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The record of one export; `to_onnx` returns it and writes it as JSON. See Record for what else it holds.

    Attributes:
        file: name of the ONNX file.
        static: dimensions of inputs that are fixed, and why.
        size: bytes of all weights.
        cuda: where the nodes go under the CUDA provider, see `CudaCheck`; None for other providers.
    """

    file: str
    static: list[str]
    size: int
    cuda: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderManifest(Record):
    """The record of one export; `to_onnx_decoder` returns it and writes it as JSON. See Record for what else it holds.

    Inputs are those of a prompt, outputs those that are not the state, nodes those of the step.

    Attributes:
        length: how many tokens there may be in all.
        state: of each tensor of the state dtype and shape, as the step takes it: "past." and its name; it gives
            "present." and its name.
        cuda: of both graphs where the nodes go under the CUDA provider, see `CudaCheck`; None for other providers.
    """

    length: int
    state: dict[str, Any]
    cuda: list[dict[str, Any]] | None = None


def described(values: Any) -> dict[str, Any]:
    """Inputs or outputs of an onnx_ir graph, as in a Manifest."""
    return {
        value.name: {
            "dtype": str(value.dtype).lower(),
            "shape": [d if isinstance(d, int) else d.value for d in value.shape],
        }
        for value in values
    }


def mixers_of(program: Program) -> dict[str, Any]:
    """The mixers of a program by their paths."""
    modules = program.graph_module.named_modules()
    return {path: module.config.to_dict() for path, module in modules if isinstance(module, Mixer)}


def operators_of(model: Any) -> dict[str, int]:
    """How many nodes of each operator an onnx_ir model has, the most frequent first."""
    names = (f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph)
    return dict(Counter(names).most_common())


def versions() -> dict[str, str]:
    """Of the packages that have a say in a file."""
    found = {"torch": str(torch.__version__)}
    for name in ("remixer", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
