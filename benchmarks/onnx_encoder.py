"""MiniLM in onnxruntime on a CPU: rewritten and exported, beside the best graph of the original.

The peer is what transformers' own exporter makes of the original, with its fusions for onnxruntime's CPU provider. All
graphs of a length take turns in one process, on the same inputs; a ratio is the median of the ratios of single turns.
Memory is by how much a process of its own grows. Position embeddings are used again every 512 tokens: this is about
cost, and says nothing about quality.

Run: python benchmarks/onnx_encoder.py [--lengths 128 512 ...] [--runs 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from alone import alone, grown_bytes
from machine import describe
from pretrained import minilm
from rich.console import Console
from rich.progress import track
from rich.table import Table

import remixer
from remixer import LongShort, SoftmaxConfig, Toeplitz
from remixer.export.onnx.runtime import Session

CONFIGS = {"softmax": SoftmaxConfig(), "long_short": LongShort(window=128, rank=32), "toeplitz": Toeplitz()}
TARGETS = {  # the least ratio to the peer that is promised, by graph and length
    "softmax": {128: 1, 512: 1, 1024: 1, 4096: 1},
    "long_short": {512: 1, 4096: 3, 8192: 5, 16384: 10},
    "toeplitz": {512: 1, 4096: 3, 8192: 5, 16384: 10},
}
PEER = "transformers"
LONGEST = {PEER: 8192, "softmax": 4096}  # beyond them scores take more memory than there is, alone and side by side
POSITIONS = 512
PATIENCE = 20.0  # seconds that one turn of a graph may take before fewer are made


def inputs_of(length: int, rows: int = 1) -> dict[str, torch.Tensor]:
    """Random ids, all of which exist, at positions that start again."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (rows, length), generator=generator)
    places = (torch.arange(length) % POSITIONS).expand(rows, -1).contiguous()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}


def export_all(folder: Path) -> dict[str, float]:
    """All graphs, and the seconds that each took."""
    seconds = {}
    model, _ = minilm()
    for name, config in CONFIGS.items():
        start = time.perf_counter()
        small = remixer.remix(model, config, inputs_of(300, 2))
        remixer.export.to_onnx(small, folder / f"{name}.onnx")
        seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
    export_peer(model, inputs_of(300, 2), folder / f"{PEER}.onnx")
    seconds[PEER] = time.perf_counter() - start
    return seconds


def export_peer(model: Any, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """What transformers' exporter makes of the original model, fused for the CPU provider."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    made = OnnxExporter().export(model, inputs, config)
    onnx_ir.save(made.program, path)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024, 4096, 8192, 16384])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "onnx_encoder.json")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        path, length = options.measure_memory
        session = Session(Path(path), threads=options.threads)
        session(inputs_of(64))
        print(grown_bytes(lambda: session(inputs_of(int(length)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        export_seconds = export_all(Path(folder))
        rows = measure(Path(folder), options)
    command = " ".join(["python", "benchmarks/onnx_encoder.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "export_seconds": export_seconds, "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = Console(width=120)
    table = Table("graph", "length", "ms", "ratio", "target", "peak MiB", title="MiniLM in onnxruntime")
    for row in rows:
        target = row.get("target")
        met = "" if target is None else f"{target} {'met' if row['ratio'] >= target else 'missed'}"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] is not None else ""
        cells = [f"{row['seconds'] * 1e3:.1f}", ratio, met, f"{row['bytes'] / 2**20:,.0f}"]
        table.add_row(row["graph"], f"{row['length']:,}", *cells)
    console.print(table)


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, one for each graph and length."""
    names = [PEER, *CONFIGS]
    rows = []
    for length in track(options.lengths, "lengths"):
        inputs = inputs_of(length)
        there = [name for name in names if length <= LONGEST.get(name, length)]
        sessions = {name: Session(folder / f"{name}.onnx", threads=options.threads) for name in there}
        turns: dict[str, list[float]] = {name: [] for name in there}
        for name in there:
            sessions[name](inputs)
        runs = options.runs
        while runs > 0:
            for name in there:
                start = time.perf_counter()
                sessions[name](inputs)
                turns[name].append(time.perf_counter() - start)
            runs -= 1 if sum(turns[each][-1] for each in there) < PATIENCE else 2
        sessions.clear()  # they keep what they took
        for name in there:
            ratio = None
            if PEER in turns:
                ratio = statistics.median(a / b for a, b in zip(turns[PEER], turns[name], strict=True))
            grown = alone(__file__, "--measure-memory", folder / f"{name}.onnx", length, "--threads", options.threads)
            row = {"graph": name, "length": length, "seconds": statistics.median(turns[name]), "ratio": ratio}
            rows.append({**row, "bytes": grown})
            if ratio is not None and length in TARGETS.get(name, {}):
                rows[-1]["target"] = TARGETS[name][length]
    return rows


if __name__ == "__main__":
    main()
