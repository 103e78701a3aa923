"""Toeplitz and Long-Short against fused attention, and against a compiled sliding window, on a CPU.

Time and memory of one mixer, beside what the machine could do at best: forward passes in float32 and bfloat16, and
training steps. All peers of a length take turns in one process, each for a quarter of a second at least, so that
whatever else the machine does meets them alike; a ratio is the median of the ratios of single turns.

Run: python benchmarks/mixers.py [--lengths 256 512 1024 ...] [--runs 7] [--threads 2] [--memory]
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
from alone import alone, grown_bytes
from machine import describe
from peers import PEERS, call_of, rates, steady_seconds, work_of
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

# The least ratio to bidirectional fused attention in float32 that is promised, by mixer and length.
TARGETS = {
    "toeplitz": {256: 1, 512: 1, 1024: 10, 4096: 35, 16384: 110, 32768: 180},
    "long_short": {512: 1, 1024: 2.5, 4096: 9, 16384: 40, 32768: 70},
}
PASSES = {  # dtype, with backward, and the longest sequence that is tried
    "forward": (torch.float32, False, 2**15),
    "forward, bfloat16": (torch.bfloat16, False, 2**14),
    "forward and backward": (torch.float32, True, 2**12),
}
PATIENCE = 20.0  # seconds that all peers' turns may take before fewer are made


def print_memory(name: str, causal: str, length: str, threads: str) -> None:
    """By how many bytes a process grows at most during its first two forward passes."""
    torch.set_num_threads(int(threads))
    with torch.no_grad():
        call_of(name, bool(int(causal)), 256)()  # libraries that load themselves late
        call = call_of(name, bool(int(causal)), int(length))
        print(grown_bytes(lambda: (call(), call())))


def measure(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """All rows, one for each pass, peer, direction and length."""
    cases = [
        (kind, length, causal)
        for kind in options.passes
        for length in options.lengths
        if length <= PASSES[kind][2]
        for causal in (False, True)
    ]
    rows = []
    bar = progress.add_task("passes", total=len(cases))
    for kind, length, causal in cases:
        rows += rows_of(kind, length, causal, options)
        progress.advance(bar)
    return rows


def rows_of(kind: str, length: int, causal: bool, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All peers at one length."""
    dtype, backward, _ = PASSES[kind]
    peers = [name for name in PEERS if not (backward and name == "window")]  # FlexAttention has no backward on CPUs
    calls = {name: call_of(name, causal, length, dtype, backward=backward) for name in peers}
    times: dict[str, list[float]] = {name: [] for name in peers}
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        for call in calls.values():
            call()
        for turn in range(options.runs):
            for name, call in calls.items():
                times[name].append(steady_seconds(call, options.threads))
            if turn >= 2 and time.perf_counter() - start > PATIENCE:
                break
        flops, copied = rates(dtype)
    rows = []
    for name in peers:
        operations, traffic = work_of(name, causal, length, dtype.itemsize)
        ratios = {
            against: statistics.median(other / took for other, took in zip(times[peer], times[name], strict=True))
            for against, peer in (("ratio", "attention"), ("to_window", "window"))
            if peer in peers
        }
        row = {
            "pass": kind,
            "mixer": name,
            "causal": causal,
            "length": length,
            "seconds": statistics.median(times[name]),
            **ratios,
            "turns": len(times[name]),
            "gflops": flops / 1e9,
            "copy_gb_s": copied / 1e9,
        }
        if not backward:
            row["floor"] = max(operations / flops, traffic / copied)
            row["of_gemm_rate"] = operations / row["seconds"] / flops
        if kind == "forward" and not causal and length in TARGETS.get(name, {}):
            row["target"] = TARGETS[name][length]
        if options.memory and kind == "forward":
            row["peak_bytes"] = alone(__file__, "--measure-memory", name, int(causal), length, options.threads)
        rows.append(row)
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for reading."""
    head = ("pass", "length", "direction", "mixer", "ms", "ratio", "target", "to window", "x floor", "of GEMM", "MiB")
    table = Table(*head)
    for row in rows:
        target, peak = row.get("target"), row.get("peak_bytes")
        table.add_row(
            row["pass"],
            f"{row['length']:,}",
            "causal" if row["causal"] else "bidirectional",
            row["mixer"],
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['ratio']:.1f}",
            "" if target is None else f"{target} {'met' if row['ratio'] >= target else 'missed'}",
            f"{row['to_window']:.1f}" if "to_window" in row else "",
            f"{row['seconds'] / row['floor']:.1f}" if "floor" in row else "",
            f"{row['of_gemm_rate']:.2f}" if "floor" in row else "",
            "" if peak is None else f"{peak / 2**20:.0f}",
        )
    return table


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 4096, 16384, 32768])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--memory", action="store_true", help="peak memory too, in a process per case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mixers.json")
    parser.add_argument("--measure-memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        print_memory(*options.measure_memory)
        return
    torch.set_num_threads(options.threads)
    console = Console(width=150)
    with Progress(console=console, transient=True) as progress:
        rows = measure(options, progress)
    console.print(table_of(rows))
    command = " ".join(["python", "benchmarks/mixers.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "rows": rows}
    console.print(result["machine"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
