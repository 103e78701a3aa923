"""When two tensors count as equal: one table for proofs and tests alike."""

from __future__ import annotations

import torch

# Largest error allowed, relative to the largest expected value (at least 1). No environment relaxes it.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def error_and_limit(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The largest absolute error and what is allowed: the tolerance of the lower precision, scaled.

    Args:
        actual: any shape; floating point.
        expected: the same shape.

    Returns:
        (error, limit). The error is NaN if either holds one that the other has not; compare with
        `error <= limit`, which NaN fails.
    """
    if expected.numel() == 0:
        return 0.0, 0.0
    actual, expected = actual.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max()))
    limit = max(TOLERANCE.get(actual.dtype, 0.0), TOLERANCE.get(expected.dtype, 0.0)) * scale
    return float((actual.double() - expected.double()).abs().max()), limit
