"""What people need to unit-test rules, passes, mixers and whole pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

# Largest error allowed, relative to the largest expected value (at least 1). No environment relaxes it.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def assert_close(actual: Any, expected: Any, *, where: torch.Tensor | None = None) -> None:
    """Raise AssertionError unless two tensors, or trees of tensors, agree.

    Floating-point values agree when they differ by at most TOLERANCE of the lower of the two precisions, times
    the largest expected value (at least 1); all others when they are equal. NaN agrees with nothing.

    Args:
        actual: a tensor, or a tree of them (dict, tuple, ModelOutput).
        expected: the same, with the same shapes.
        where: bool, indexes the leading dimensions of every tensor; only these entries are compared.

    Example:
        >>> assert_close(torch.ones(3), torch.ones(3) + 1e-6)
    """
    actual_leaves, actual_spec = pytree.tree_flatten(actual)
    expected_leaves, expected_spec = pytree.tree_flatten(expected)
    if len(actual_leaves) != len(expected_leaves):
        raise AssertionError(f"different structures: {actual_spec} against {expected_spec}")
    for index, (got, want) in enumerate(zip(actual_leaves, expected_leaves, strict=True)):
        place = f" in output {index}" if len(expected_leaves) > 1 else ""
        if not isinstance(want, torch.Tensor):
            if got != want:
                raise AssertionError(f"got {got!r}, expected {want!r}{place}")
            continue
        if got.shape != want.shape:
            raise AssertionError(f"got shape {tuple(got.shape)}, expected {tuple(want.shape)}{place}")
        if where is not None:
            got, want = got[where], want[where]
        if not want.is_floating_point():
            if not torch.equal(got, want):
                raise AssertionError(f"values differ{place}")
            continue
        if want.numel() == 0:
            continue
        limit = max(TOLERANCE[got.dtype], TOLERANCE[want.dtype]) * max(1.0, float(want.abs().max()))
        error = float((got.double() - want.double()).abs().max())
        if not error <= limit:  # not: error > limit, which NaN would pass
            raise AssertionError(f"largest error {error:.3g}, allowed {limit:.3g}{place}")
