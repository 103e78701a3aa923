"""`check_cuda`: what keeps an ONNX file from running on the GPU as a whole, said without a GPU."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from remixer.export.onnx.cuda_kernels import cuda_kernels
from remixer.export.onnx.placement import place


@dataclass(frozen=True)
class CudaCheck:
    """Where the nodes of a file go under onnxruntime's CUDA provider.

    Attributes:
        source: the build whose kernels were looked at, and how they are known.
        problems: nodes without a CUDA kernel and values that go from one side to the other; none is good.
        host: nodes that compute with sizes, a few numbers each, which onnxruntime leaves on the CPU on purpose.
    """

    source: str
    problems: list[str]
    host: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


def check_cuda(path: str | os.PathLike[str]) -> CudaCheck:
    """Say where the nodes of an ONNX file would run under onnxruntime's CUDA provider; it needs no GPU and no CUDA.

    Every node must have a kernel, by operator, version and dtypes, and no value may be copied from one side to the
    other. The kernels are those that the installed onnxruntime lists; one without CUDA lists none, and one without all
    its libraries can't: then those of a table are taken, and `source` says so. A file as it lies is looked at, before
    onnxruntime fuses any nodes.

    Args:
        path: of the file.

    Returns:
        What was found; it is as wanted if `problems` is empty.

    Raises:
        ExportError: the dtype of a value isn't in the file, and can't be inferred.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    model = ir.load(path)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        common.ShapeInferencePass()(model)
    return check_model(model)


def check_model(model: Any) -> CudaCheck:
    """The same for an onnx_ir.Model."""
    kernels = cuda_kernels()
    placed = place(model, kernels)
    problems = placed.missing + [
        f"{each.value} is copied to the {'CPU' if each.to_host else 'GPU'} for {each.reader}" for each in placed.copies
    ]
    return CudaCheck(kernels.source, problems, placed.host)
