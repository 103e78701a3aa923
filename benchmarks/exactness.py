"""Rewrites that must change nothing, on the real MiniLM and SmolLM2: how far the outputs are from the original's.

`softmax` on every site, and `long_short` with a window over the whole text and no summaries, in both spellings of
attention, padded batches, at lengths that the capture didn't see. The error is the largest over all tokens that exist,
divided by the largest output (at least 1).

Run: python benchmarks/exactness.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from pretrained import minilm, padded_batch, smollm2
from rich.console import Console
from rich.table import Table
from torch import nn

import remixer
from remixer import LongShort, SoftmaxConfig

MODELS: dict[str, Callable[[str], tuple[nn.Module, Any]]] = {"MiniLM": minilm, "SmolLM2": smollm2}
CONFIGS = {"softmax": SoftmaxConfig(), "long_short(window=512, rank=0)": LongShort(window=512, rank=0)}
SIZES = ((1, 1, False), (1, 7, False), (3, 61, False), (3, 61, True), (2, 200, True), (1, 333, False))


def error(original: nn.Module, small: nn.Module, rows: int, length: int, left: bool) -> float:
    """Largest error over existing tokens, relative to the largest output."""
    inputs = padded_batch(rows, length, 20000, left=left, seed=length)
    with torch.no_grad():
        expected, actual = original(**inputs)[0], small(**inputs)[0]
    exists = inputs["attention_mask"].bool()
    expected, actual = expected[exists], actual[exists]
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "exactness.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name, load in MODELS.items():
        for attention in ("sdpa", "eager"):
            original, _ = load(attention)
            for mixer, config in CONFIGS.items():
                small = remixer.remix(original, config, padded_batch(2, 32, 20000), strict=True)
                worst = max(error(original, small, *size) for size in SIZES)
                rows.append({"model": name, "attention": attention, "mixer": mixer, "error": worst})
    table = Table(title="largest relative error, fp32, batches x lengths " + str([size[:2] for size in SIZES]))
    for column in ("model", "attention", "mixer", "error"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["model"], row["attention"], row["mixer"], f"{row['error']:.1e}")
    Console(width=120).print(table)
    result = {"command": " ".join(["python", *sys.argv]), "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
