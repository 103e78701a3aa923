"""Seconds and memory of exporting SmolLM2 in ONNX, each kind of file in a process of its own.

Beside what remixer writes, and runs beside torch before it returns, is what transformers' own exporter does with the
original: it writes a file, and runs nothing. Memory is by how much the process grows at most beyond the model.

Run: python benchmarks/onnx_export.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx_decoder
import onnx_encoder
from alone import alone, grown_bytes
from machine import describe
from onnx_decoder import example
from pretrained import smollm2
from rich.console import Console
from rich.table import Table

import remixer
from remixer import LongShort, SoftmaxConfig
from remixer.export import to_onnx, to_onnx_decoder

CONFIGS = {"softmax": SoftmaxConfig(), "long_short": LongShort()}
SECONDS, TIMES = 90, 2  # the goals


def export(what: str, graph: str, folder: Path) -> dict[str, Any]:
    """One export.

    Args:
        what: "model" or "decoder".
        graph: "transformers", or a mixer.
        folder: to write to.
    """
    model, _ = smollm2()
    weights = sum(weight.nbytes for weight in model.parameters())
    calls = {
        ("model", "transformers"): lambda: onnx_encoder.export_peer(model, example(), folder / "model.onnx"),
        ("decoder", "transformers"): lambda: onnx_decoder.export_peer(model, folder / "decoder"),
    }
    if graph in CONFIGS:
        small = remixer.remix(model, CONFIGS[graph], example())
        calls["model", graph] = lambda: to_onnx(small, folder / "model.onnx")
        calls["decoder", graph] = lambda: to_onnx_decoder(small, folder / "decoder", length=4608)
    start = time.perf_counter()
    grown = grown_bytes(calls[what, graph])
    return {"what": what, "graph": graph, "seconds": time.perf_counter() - start, "bytes": grown, "weights": weights}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "onnx_export.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print("\n" + json.dumps(export(*options.one, Path(folder))))
        return
    kinds = [(what, graph) for what in ("model", "decoder") for graph in ("transformers", *CONFIGS)]
    rows = [alone(__file__, "--one", *kind) for kind in kinds]
    result = {"command": "python benchmarks/onnx_export.py", "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("file", "graph", "seconds", "MiB", "times its weights", title="Exporting SmolLM2 in ONNX")
    for row in rows:
        times = row["bytes"] / row["weights"]
        cells = [f"{row['seconds']:.0f}", f"{row['bytes'] / 2**20:,.0f}", f"{times:.2f}"]
        table.add_row(row["what"], row["graph"], *cells)
    Console(width=100).print(table)
    ours = [row for row in rows if row["what"] == "model" and row["graph"] in CONFIGS]
    slowest, largest = max(row["seconds"] for row in ours), max(row["bytes"] / row["weights"] for row in ours)
    print(f"goals of one file: {slowest:.0f} of {SECONDS} seconds, {largest:.2f} of {TIMES} times its weights")


if __name__ == "__main__":
    main()
