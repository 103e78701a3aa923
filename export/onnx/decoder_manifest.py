"""What stands beside the graphs of a decoder: what they take, what they were made from, and how they were proven."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderManifest:
    """The record of one export; `to_onnx_decoder` returns it and writes it as JSON.

    Attributes:
        length: how many tokens there may be in all.
        inputs: of each input of a prompt its dtype and shape, dynamic dimensions by name.
        outputs: the same of each output that is not the state.
        state: the same of each tensor of the state, as the step takes it: "past." and its name; it gives "present."
            and its name.
        opset: versions of operator sets by domain.
        ir_version: of the file format.
        provider: what it was exported for, "cpu" or "cuda".
        mixers: of each site, the mixer with its options.
        trials: how many sequences were gone through beside torch.
        error: the largest difference found, relative to the largest number (1 at least) of each output.
        tolerance: what was allowed.
        nodes: how many there are of each operator, in the step.
        versions: of the packages that made it.
        seconds: that each part took.
        precision: "float32" or "int8".
        effect: what a lower precision does to the outputs, see Effect.
        cuda: of graphs for CUDA, where their nodes go, see CudaCheck.
    """

    length: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    state: dict[str, Any]
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
    cuda: list[dict[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)
