"""How time and memory of one mixer grow from 4,096 tokens to a million, and how long a sequence a given memory holds.

The first table is of forward passes without gradients: log-linear for toeplitz (Qin et al., 2023), linear for
long_short (Zhu et al., 2021). The second is of forward and backward passes: the longest sequence that takes at most
--budget GiB beyond its operands, for attention with its scores written out, fused attention, and the mixers. Where
running that long a sequence would take minutes, memory is extrapolated from the two longest that were run.

Run: python benchmarks/scaling.py [--longest 1048576] [--budget 1.0] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from alone import alone, grown_bytes
from machine import describe
from peers import HEAD_DIM, HEADS, build, steady_seconds
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

SHORTEST = 4096
TARGETS = {"toeplitz": 2.3, "long_short": 2.1}  # seconds(2n) / seconds(n) at most, memory likewise
PEERS = ("attention, scores written out", "attention, fused", "long_short", "toeplitz")
TURNS = 5  # of which the median counts: memory that is used again and again settles in the first
PATIENCE = 20.0  # seconds that one pass may take before memory is extrapolated


def call_of(name: str, length: int, *, backward: bool) -> Callable[[], object]:
    """One pass over random operands, causal nowhere."""
    torch.manual_seed(0)
    operands = [torch.randn(1, HEADS, length, HEAD_DIM, requires_grad=backward) for _ in range(3)]
    mixer = None if name.startswith("attention") else build(name, causal=False).train(backward)

    def forward() -> Tensor:
        if name == "toeplitz":
            return mixer(value=operands[2])
        if mixer is not None:
            return mixer(*operands)
        if name == "attention, fused":
            return F.scaled_dot_product_attention(*operands)
        query, key, value = operands
        return torch.softmax(query @ key.transpose(-1, -2) * HEAD_DIM**-0.5, -1) @ value

    if not backward:
        return forward

    def both() -> None:
        for operand in operands:
            operand.grad = None
        forward().sum().backward()

    return both


def in_own_process(name: str, length: int, backward: bool, threads: int) -> dict[str, float]:
    """Seconds of one pass and by how many bytes it grows a process at most."""
    found: dict[str, float] = alone(__file__, "--one", name, length, int(backward), threads)
    return found


def print_one(name: str, length: str, backward: str, threads: str) -> None:
    """What `in_own_process` starts."""
    torch.set_num_threads(int(threads))
    with torch.set_grad_enabled(bool(int(backward))):
        call_of(name, 512, backward=bool(int(backward)))()  # libraries that load themselves late
        call = call_of(name, int(length), backward=bool(int(backward)))
        grown = grown_bytes(call)
        took = statistics.median(steady_seconds(call, int(threads)) for _ in range(TURNS))
    print(json.dumps({"seconds": took, "bytes": grown}))


def growth(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Seconds and bytes at lengths that double, and their ratios to those of half the length."""
    lengths = [SHORTEST]
    while 2 * lengths[-1] <= options.longest:
        lengths.append(2 * lengths[-1])
    rows: list[dict[str, Any]] = []
    bar = progress.add_task("growth", total=2 * len(lengths))
    for name in TARGETS:
        before = None
        for length in lengths:
            found: dict[str, Any] = in_own_process(name, length, False, options.threads)
            row = {"mixer": name, "length": length, **found, "target": TARGETS[name]}
            if before is not None:
                row |= {f"{what}_ratio": found[what] / max(before[what], 1e-9) for what in ("seconds", "bytes")}
            rows.append(row)
            before = found
            progress.advance(bar)
    return rows


def longest_within(name: str, budget: float, threads: int) -> dict[str, Any]:
    """The longest sequence, in steps of a sixteenth, whose forward and backward passes take at most so many bytes."""
    length, runs = 1024, {}
    while True:
        runs[length] = in_own_process(name, length, True, threads)
        if runs[length]["bytes"] > budget or runs[length]["seconds"] * 4 > PATIENCE:
            break
        length *= 2
    last, half = runs[length], runs.get(length // 2, runs[length])
    if last["bytes"] <= budget:  # too slow to go on: linear from the two longest
        slope = (last["bytes"] - half["bytes"]) / (length // 2)
        return {"mixer": name, "length": int(length + (budget - last["bytes"]) / max(slope, 1.0)), "extrapolated": True}
    low, high = length // 2, length
    while high - low > max(64, low // 16):
        middle = (low + high) // 2
        runs[middle] = in_own_process(name, middle, True, threads)
        low, high = (middle, high) if runs[middle]["bytes"] <= budget else (low, middle)
    return {"mixer": name, "length": low, "extrapolated": False, "seconds": runs.get(low, half)["seconds"]}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=2**20)
    parser.add_argument("--budget", type=float, default=1.0, help="GiB, for the longest sequence it holds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print_one(*options.one)
        return
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    with Progress(console=console, transient=True) as progress:
        rows = growth(options, progress)
        held = []
        bar = progress.add_task("longest sequence", total=len(PEERS))
        for name in PEERS:
            held.append(longest_within(name, options.budget * 2**30, options.threads))
            progress.advance(bar)
    table = Table("mixer", "tokens", "seconds", "x half", "MiB", "x half", "target")
    for row in rows:
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("seconds_ratio", "bytes_ratio")]
        cells = [f"{row['seconds']:.4f}", ratios[0], f"{row['bytes'] / 2**20:.0f}", ratios[1], str(row["target"])]
        table.add_row(row["mixer"], f"{row['length']:,}", *cells)
    console.print(table)
    table = Table("forward and backward", f"longest within {options.budget:g} GiB", "extrapolated")
    for row in held:
        table.add_row(row["mixer"], f"{row['length']:,}", "yes" if row["extrapolated"] else "")
    console.print(table)
    command = " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "budget_gib": options.budget, "rows": rows, "longest": held}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
