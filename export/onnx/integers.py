"""Arithmetic of sizes, where ONNX and Python mean different things by the same name."""

from __future__ import annotations

from typing import Any


def floor_division(left: Any, right: Any) -> Any:
    """Left // right of whole numbers, rounded down as in Python; ONNX's Div rounds towards zero.

    Quotients rounded up are written as -(-n // m), which would otherwise be one too small.
    """
    from onnxscript import opset20

    op: Any = opset20

    return op.Div(op.Sub(left, op.Mod(left, right)), right)
