"""What a lower precision does to a model's outputs: measured on the trials of the verification, and bounded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remixer.export.errors import ExportError, OnnxMismatchError
from remixer.export.examples import trials
from remixer.export.onnx.compare import largest_difference, where_they_exist
from remixer.export.onnx.runtime import PROVIDERS, Provider, Session
from remixer.export.onnx.verify import feeds_of
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.program import Program
from remixer.rewrite.tolerance import TOLERANCE

# On MiniLM the worst of all trials has 0.92 as the quantiser is set here, and 0.32 to 0.69 with scales that fit no
# channel: between them. Random tokens are harder than texts, whose embeddings keep 0.99.
LOWEST_COSINE = 0.8


@dataclass(frozen=True)
class Effect:
    """How far a file of lower precision is from the rewritten model in torch, over all outputs of all trials.

    Attributes:
        provider: of onnxruntime that ran it.
        trials: on how many inputs.
        error: the largest difference, relative to the largest number (1 at least) of each output.
        mean_error: the mean difference relative to the mean number of each output, the largest of them.
        cosine: of each output with torch's, both as one vector, the lowest of them.
        limit: what was allowed: of `error` for float16; below that `cosine` for int8.
    """

    provider: str
    trials: int
    error: float
    mean_error: float
    cosine: float
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


def measure(program: Program, path: Path, provider: Provider, precision: str, tolerance: float) -> Effect:
    """Run a file of lower precision beside torch on all trials.

    Args:
        program: in float32.
        path: of the file.
        provider: to run it on.
        precision: "float16" or "int8".
        tolerance: allowed error of float16, if that is more than what is allowed anyway.

    Raises:
        OnnxMismatchError: an output isn't finite where torch's is, or too far from torch's to be of use.
        ExportError: onnxruntime refuses the file, or fails.
    """
    half = precision == "float16"
    limit = max(TOLERANCE[torch.float16], tolerance) if half else LOWEST_COSINE
    count, error, mean_error, cosine = 0, 0.0, 0.0, 1.0
    session = Session(path, provider)
    for trial in trials(program):
        try:
            expected = tensors_in(run(program.graph_module, trial.call))
        except NotRunError:
            continue
        try:
            outputs = session(feeds_of(trial.call))
        except Exception as failed:  # onnxruntime has an exception class per status
            raise ExportError(f"the {precision} graph fails on {trial.name}: {str(failed).splitlines()[0]}") from failed
        for name, got, want in zip(session.outputs, outputs, expected, strict=True):
            if not want.is_floating_point() or not want.numel():
                continue  # choices such as an argmax may turn out otherwise
            found, mean, alike = compared(*where_they_exist(got, want, trial.exist))
            if not (found <= limit if half else alike >= limit):
                raise OnnxMismatchError(
                    f"the {precision} file is too far from torch in {name}, on {trial.name}: largest difference "
                    f"{found:.2g} of the largest number, cosine {alike:.3g}; allowed "
                    f"{f'a difference of {limit:.2g}' if half else f'a cosine of {limit:.2g} or more'}. What to do: "
                    f"export with precision='float32'{', or allow more by tolerance=' if half else ''}"
                )
            error, mean_error, cosine = max(error, found), max(mean_error, mean), min(cosine, alike)
        count += 1
    return Effect(PROVIDERS[provider], count, error, mean_error, cosine, limit)


def compared(got: Tensor, want: Tensor) -> tuple[float, float, float]:
    """The largest difference, the mean one and the cosine; the worst there is for other shapes."""
    found = largest_difference(got, want)
    if got.shape != want.shape:
        return found, float("inf"), -1.0
    got, want = got.double().flatten(), want.double().flatten()
    mean = float((got - want).abs().mean() / want.abs().mean().clamp(min=1e-30))
    return found, mean, _cosine(got, want)


def _cosine(left: Tensor, right: Tensor) -> float:
    """Of two vectors; 1 for two of zeros."""
    size = float(left.norm() * right.norm())
    if size == 0:
        return 1.0 if torch.equal(left, right) else 0.0
    return float(left @ right) / size
