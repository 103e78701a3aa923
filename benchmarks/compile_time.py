"""What `remix` costs on SmolLM2-135M beside the `torch.export.export` call inside it.

Run: python benchmarks/compile_time.py [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe
from pretrained import padded_batch, smollm2
from rich.console import Console
from rich.table import Table

import remixer
from remixer import LongShort


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compile_time.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, _ = smollm2()
    inputs = padded_batch(2, 32, 20000)
    export, inside = torch.export.export, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        exported = export(*args, **kwargs)
        inside.append(time.perf_counter() - start)
        return exported

    torch.export.export = timed
    whole, steps = [], []
    for run in range(options.runs + 1):
        start = time.perf_counter()
        small = remixer.remix(model, LongShort(window=128, sinks=4), inputs)
        whole.append(time.perf_counter() - start)
        steps = [(step.name, step.seconds) for step in small.report.passes]
        if run == 0:  # the first call imports half of torch
            whole.clear()
            inside.clear()
    ratios = [all_of_it / part for all_of_it, part in zip(whole, inside, strict=True)]
    table = Table(title="SmolLM2-135M, 30 sites to long_short, seconds (medians)")
    for column in ("torch.export.export", "remix", "ratio"):
        table.add_column(column, justify="right")
    row = {
        "export": statistics.median(inside),
        "remix": statistics.median(whole),
        "ratio": statistics.median(ratios),
        "steps": dict(steps),
    }
    table.add_row(f"{row['export']:.2f}", f"{row['remix']:.2f}", f"{row['ratio']:.2f}")
    Console(width=120).print(table, dict(steps))
    result = {"command": " ".join(["python", *sys.argv]), "machine": describe(), "rows": [row]}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
