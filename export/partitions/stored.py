"""The graph of a stage in a file, as JSON of its own, and its weights beside it: nothing in it is run to be read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from remixer.export.artifacts.graphs import Tables, graph_of, written
from remixer.export.artifacts.modules import root_of, written_modules, written_tensors
from remixer.export.artifacts.recorded import Recorder
from remixer.export.artifacts.records import GraphRecord, ModuleRecord, TensorRecord
from remixer.export.artifacts.symbols import environment
from remixer.export.typed import parsed, plain, read_text, typed
from remixer.rewrite.modules import keep_persistence


@dataclass(frozen=True)
class StoredGraph:
    """What the file holds.

    Attributes:
        graph: that processes run.
        modules: that it calls.
        tensors: its weights.
    """

    graph: GraphRecord
    modules: tuple[ModuleRecord, ...]
    tensors: tuple[TensorRecord, ...]


def write_graph(source: ExportedProgram, path: Path) -> dict[str, Tensor]:
    """Write a graph.

    Returns:
        Its weights, by their keys.

    Raises:
        TypedError: it calls or holds what no file may.
    """
    root: Any = source.module(check_guards=False)
    module = fx.GraphModule(root, root.graph)
    keep_persistence(root, module)
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)  # it says what `.to` was given when the graph was made
    tables = Tables(values=False)
    records, tensors = written_tensors(module)
    stored = StoredGraph(written(module.graph, tables), written_modules(module, tables), records)
    path.write_text(json.dumps(plain(stored), allow_nan=False) + "\n", encoding="utf-8")
    return tensors


def read_graph(path: Path, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """A graph with its weights.

    Raises:
        TypedError: the file is none of a graph, or doesn't fit the weights.
    """
    stored = typed(StoredGraph, parsed(read_text(path)))
    recorder = Recorder.of(*environment({}))
    root = root_of(stored.modules, stored.tensors, tensors, recorder)
    module = fx.GraphModule(root, graph_of(stored.graph, recorder))
    keep_persistence(root, module)
    return module
