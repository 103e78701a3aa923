"""Seconds and bytes of saving and loading the real MiniLM and SmolLM2, all attentions replaced by long_short.

Run: python benchmarks/artifacts.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from pretrained import minilm, padded_batch, smollm2
from rich.console import Console
from rich.table import Table

import remixer
from remixer import LongShort

MODELS: dict[str, Callable[[], Any]] = {"MiniLM": minilm, "SmolLM2-135M": smollm2}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "artifacts.json")
    options = parser.parse_args()
    table = Table(title="artifacts of models whose attentions are long_short")
    columns = (
        "model",
        "original",
        "save s",
        "save CPU s",
        "load s",
        "load CPU s",
        "MB",
        "weights MB",
        "graph MB",
        "nodes",
        "same outputs",
    )
    for column in columns:
        table.add_column(column, justify="right")
    rows = [row for name in MODELS for row in measured(name)]
    for row in rows:
        table.add_row(
            *(f"{row[column]:.2f}" if isinstance(row[column], float) else str(row[column]) for column in columns)
        )
    Console(width=150).print(table)
    result = {"command": " ".join(["python", *sys.argv]), "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


def timed(do: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of the CPU: the second time, since the first imports what is missing."""
    do()
    start, busy = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - start, time.process_time() - busy


def measured(name: str) -> list[dict[str, Any]]:
    """Without and with the original."""
    model, _ = MODELS[name]()
    inputs = padded_batch(2, 32, 20000, left=name != "MiniLM")
    small = remixer.remix(model, LongShort(), inputs)
    rows = []
    for original in (False, True):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "artifact"
            saving = timed(lambda folder=folder, original=original: remixer.save(small, folder, original=original))
            loading = timed(lambda folder=folder: remixer.load(folder))
            loaded = remixer.load(folder)
            sizes = {file.name.split(".")[0]: file.stat().st_size / 1e6 for file in folder.iterdir()}
            longer = padded_batch(2, 300, 20000, left=name != "MiniLM")
            with torch.no_grad():
                same = bool(torch.equal(small(**longer)[0], loaded(**longer)[0]))
            rows.append(
                {
                    "model": name,
                    "original": original,
                    "save s": saving[0],
                    "save CPU s": saving[1],
                    "load s": loading[0],
                    "load CPU s": loading[1],
                    "MB": sum(sizes.values()),
                    "weights MB": sizes["weights"],
                    "graph MB": sizes["graph"],
                    "nodes": len(small.graph.nodes),
                    "same outputs": same,
                }
            )
    return rows


if __name__ == "__main__":
    main()
