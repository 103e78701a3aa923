"""The precisions of ONNX files, and who may have which."""

from __future__ import annotations

from typing import Literal

from remixer.export.errors import ExportError
from remixer.export.onnx.runtime import Provider

Precision = Literal["float32", "float16", "int8"]
PROVIDERS_OF: dict[str, tuple[str, ...]] = {"float32": ("cpu", "cuda"), "float16": ("cuda",), "int8": ("cpu",)}
_REASONS = {
    "float16": "onnxruntime's CPU provider multiplies in float32 and would cast every operand first",
    "int8": "onnxruntime has no CUDA kernels for dynamically quantised products",
}


def check_precision(precision: str, provider: Provider) -> None:
    """Raise unless a file of this precision makes sense for this provider.

    Raises:
        ExportError: it doesn't, or there is no such precision.
    """
    if precision not in PROVIDERS_OF:
        raise ExportError(f"precision must be one of {', '.join(PROVIDERS_OF)}, got {precision!r}")
    if provider not in PROVIDERS_OF[precision]:
        other = PROVIDERS_OF[precision][0]
        raise ExportError(
            f"precision={precision!r} is not for provider={provider!r}: {_REASONS[precision]}. What to do: export with "
            f"provider={other!r}, or with precision='float32'"
        )
