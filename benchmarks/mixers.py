"""Toeplitz and Long-Short against fused attention: time of one mixer, beside what the machine could do at best.

Run: python benchmarks/mixers.py [--lengths 1024 4096 16384] [--runs 9] [--threads 2] [--memory]

All peers of a length take turns in one process, each for a quarter of a second at least, so that whatever else the
machine does meets them alike; a ratio is the median of the ratios of single turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from alone import alone, grown_bytes
from machine import describe
from peers import PEERS, call_of, rates, steady_seconds, work_of
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

# The least ratio to bidirectional fused attention that is promised, by mixer and length.
TARGETS = {"toeplitz": {1024: 8, 4096: 25, 16384: 60}, "long_short": {1024: 2, 4096: 8, 16384: 25}}


def print_memory(name: str, causal: str, length: str, threads: str) -> None:
    """By how many bytes a process grows at most during its first two forward passes."""
    torch.set_num_threads(int(threads))
    with torch.no_grad():
        call_of(name, bool(int(causal)), 256)()  # libraries that load themselves late
        call = call_of(name, bool(int(causal)), int(length))
        print(grown_bytes(lambda: (call(), call())))


def measure(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """All rows, one for each peer, direction and length."""
    rows = []
    bar = progress.add_task("forward passes", total=2 * len(options.lengths) * (options.runs + 2))
    for length in options.lengths:
        for causal in (False, True):
            calls = {name: call_of(name, causal, length) for name in PEERS}
            times: dict[str, list[float]] = {name: [] for name in PEERS}
            for turn in range(options.runs + 2):
                for name, call in calls.items():
                    took = steady_seconds(call, options.threads)
                    if turn >= 2:
                        times[name].append(took)
                progress.advance(bar)
            flops, copied = rates()
            for name in PEERS:
                pairs = zip(times["attention"], times[name], strict=True)
                operations, traffic = work_of(name, causal, length)
                row = {
                    "mixer": name,
                    "causal": causal,
                    "length": length,
                    "seconds": statistics.median(times[name]),
                    "ratio": statistics.median(full / took for full, took in pairs),
                    "floor": max(operations / flops, traffic / copied),
                    "gflops": flops / 1e9,
                    "copy_gb_s": copied / 1e9,
                }
                if not causal and length in TARGETS.get(name, {}):
                    row["target"] = TARGETS[name][length]
                if options.memory:
                    row["peak_bytes"] = alone(__file__, "--measure-memory", name, int(causal), length, options.threads)
                rows.append(row)
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for reading."""
    table = Table("length", "direction", "mixer", "ms", "ratio", "target", "floor ms", "x floor", "peak MiB")
    for row in rows:
        target = row.get("target")
        peak = row.get("peak_bytes")
        table.add_row(
            f"{row['length']:,}",
            "causal" if row["causal"] else "bidirectional",
            row["mixer"],
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['ratio']:.1f}",
            "" if target is None else f"{target} {'met' if row['ratio'] >= target else 'missed'}",
            f"{row['floor'] * 1e3:.2f}",
            f"{row['seconds'] / row['floor']:.1f}",
            "" if peak is None else f"{peak / 2**20:.0f}",
        )
    return table


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="peak memory too, in a process per case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mixers.json")
    parser.add_argument("--measure-memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        print_memory(*options.measure_memory)
        return
    torch.set_num_threads(options.threads)
    console = Console()
    with torch.no_grad(), Progress(console=console, transient=True) as progress:
        rows = measure(options, progress)
    console.print(table_of(rows))
    command = " ".join(["python", "benchmarks/mixers.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "rows": rows}
    console.print(result["machine"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
