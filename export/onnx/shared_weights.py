"""Graphs that read their weights from one file beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

SMALLEST = 1024  # bytes; smaller tensors stay in the graph, where shapes are inferred from them


def save_sharing(graphs: list[Any], paths: list[Path], weights: str) -> None:
    """Write onnx_ir models of which each weight is written once, to a file beside them.

    Args:
        graphs: the models, as they are afterwards too.
        paths: of the graphs, in one folder.
        weights: the name of the weights' file.
    """
    import onnx_ir as ir

    written: dict[tuple[Any, ...], Any] = {}
    inside: list[tuple[Any, Any]] = []
    offset = 0
    with (paths[0].parent / weights).open("wb") as file:
        for graph in graphs:
            for value in graph.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < SMALLEST:
                    continue
                data = tensor.tobytes()
                key = (tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(data).digest())
                if key not in written:
                    start = -(-offset // 4096) * 4096  # where a page begins, so that runtimes can map it
                    file.write(b"\0" * (start - offset) + data)
                    offset = start + len(data)
                    written[key] = (start, len(data))
                start, size = written[key]
                inside.append((value, tensor))
                value.const_value = ir.ExternalTensor(
                    weights, start, size, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=paths[0].parent
                )
    for graph, path in zip(graphs, paths, strict=True):
        ir.save(graph, path)
    for value, tensor in inside:
        value.const_value = tensor
