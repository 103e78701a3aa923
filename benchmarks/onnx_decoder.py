"""SmolLM2 one token at a time in onnxruntime on a CPU: rewritten and exported, beside transformers' own cached graph.

The peer is the decoding graph that transformers' exporter makes of the original, with its fusions for onnxruntime's CPU
provider. A step is one token behind a context of random keys and values; all graphs of a context take turns in one
process, on onnxruntime's own values, so that nothing is copied around a step. A ratio is the median of the ratios of
single turns.

Run: python benchmarks/onnx_decoder.py [--contexts 128 1024 4096] [--graphs softmax "softmax int8" ...] [--runs 15]
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import torch
from alone import alone, grown_bytes
from machine import describe
from pretrained import smollm2
from rich.console import Console
from rich.progress import track
from rich.table import Table

import remixer
from remixer import LongShort, SoftmaxConfig, Toeplitz
from remixer.export import to_onnx_decoder
from remixer.export.onnx.precision import Precision
from remixer.mixers import MixerConfig

GRAPHS: dict[str, tuple[MixerConfig, Precision]] = {
    "softmax": (SoftmaxConfig(), "float32"),
    "softmax int8": (SoftmaxConfig(), "int8"),
    "long_short": (LongShort(), "float32"),
    "toeplitz": (Toeplitz(), "float32"),
}
PEER = "transformers"
LENGTH = 4608
DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(bool)": np.bool_}


def example() -> dict[str, torch.Tensor]:
    """A prompt of two rows."""
    ids = torch.randint(1000, 20000, (2, 24), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def export_all(folder: Path, names: list[str]) -> dict[str, float]:
    """All graphs, and the seconds that each took."""
    seconds = {}
    model, _ = smollm2()
    for name in names:
        config, precision = GRAPHS[name]
        small = remixer.remix(model, config, example())
        start = time.perf_counter()
        manifest = to_onnx_decoder(small, folder / name, length=LENGTH, precision=precision)
        seconds[name] = time.perf_counter() - start
        print(name, manifest.error, manifest.trials, manifest.seconds, manifest.effect)
    start = time.perf_counter()
    export_peer(model, folder / PEER)
    seconds[PEER] = time.perf_counter() - start
    return seconds


def export_peer(model: Any, folder: Path) -> None:
    """The decoding graph that transformers' exporter makes of the original model, fused for the CPU provider."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    made = OnnxExporter().export_for_generation(model, example(), config)
    folder.mkdir()
    onnx_ir.save(made.components["decode"].program, folder / "step.onnx", external_data="weights.data")


def session_of(path: Path, threads: int) -> ort.InferenceSession:
    """A graph, its threads asleep between runs: several sessions would take the cores from each other."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(session: ort.InferenceSession, context: int) -> dict[str, Any]:
    """One token behind a context, by the names and shapes that the graph has."""
    rng = np.random.default_rng(0)
    feeds = {}
    for one in session.get_inputs():
        kept = "past" in one.name
        shape = [int(size) if str(size).isdigit() else 1 if i == 0 else context for i, size in enumerate(one.shape)]
        kind = DTYPES[one.type]
        if kind is np.float32:
            value = rng.standard_normal(shape, dtype=np.float32)
        elif kind is np.bool_ or one.name == "attention_mask":
            value = np.ones(shape, dtype=kind)
        else:
            value = np.full(shape, context if kept or one.name == "position_ids" else 1000, dtype=kind)
        feeds[one.name] = ort.OrtValue.ortvalue_from_numpy(value)
    return feeds


def print_memory(path: str, context: str, threads: int) -> None:
    """By how many bytes a process grows at most when it loads a graph and takes one step."""

    def step() -> None:
        session = session_of(Path(path), threads)
        session.run_with_ort_values(None, feeds_of(session, int(context)))

    print(grown_bytes(step))


def measure(folder: Path, names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, one for each graph and context."""
    sessions = {name: session_of(folder / name / "step.onnx", options.threads) for name in names}
    rows = []
    for context in track(options.contexts, "contexts"):
        feeds = {name: feeds_of(session, context) for name, session in sessions.items()}
        turns: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(options.runs + 2):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run_with_ort_values(None, feeds[name])
                if turn >= 2:
                    turns[name].append(time.perf_counter() - start)
        for name in names:
            ratios = [a / b for a, b in zip(turns[PEER], turns[name], strict=True)]
            seconds = statistics.median(turns[name])
            row = {"graph": name, "context": context, "seconds": seconds, "tokens_per_second": 1 / seconds}
            rows.append({**row, "ratio": statistics.median(ratios)})
    for row in rows:
        file = folder / row["graph"] / "step.onnx"
        row["bytes"] = alone(__file__, "--measure-memory", file, row["context"], "--threads", options.threads)
    return rows


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--graphs", nargs="+", choices=list(GRAPHS), default=["softmax", "softmax int8", "long_short"])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "onnx_decoder.json")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        print_memory(*options.measure_memory, options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        export_seconds = export_all(Path(folder), options.graphs)
        rows = measure(Path(folder), [PEER, *options.graphs], options)
    command = shlex.join(["python", "benchmarks/onnx_decoder.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "export_seconds": export_seconds, "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("graph", "context", "ms", "tokens/s", "ratio", "peak MiB", title="SmolLM2, one token, in onnxruntime")
    for row in rows:
        cells = [f"{row['seconds'] * 1e3:.1f}", f"{row['tokens_per_second']:.1f}", f"{row['ratio']:.2f}"]
        table.add_row(row["graph"], f"{row['context']:,}", *cells, f"{row['bytes'] / 2**20:,.0f}")
    Console(width=120).print(table)
    Console(width=120).print(export_seconds)


if __name__ == "__main__":
    main()
