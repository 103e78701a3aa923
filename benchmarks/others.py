"""Toeplitz and Long-Short against other implementations of the same, forward and forward with backward.

The straightforward forms compute the same numbers, which is checked first. `long-short-transformer` from PyPI, where
it is installed (with rotary-embedding-torch 0.1.5), ties values to keys and is another model; it is compared as a
layer, with its projections, against a layer of ours. Peers take turns, each in a process of its own for its memory.

Run: python benchmarks/others.py [--lengths 1024 4096 16384] [--threads 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from alone import alone, grown_bytes
from machine import describe
from peers import HEAD_DIM, HEADS, RANK, WIDTH, WINDOW, steady_seconds
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from straightforward import StraightforwardLongShort, StraightforwardToeplitz
from torch import Tensor

from remixer.mixers import AttentionSpec, LongShort, LongShortAttention, LongShortMixer, Toeplitz, ToeplitzMixer
from remixer.testing import assert_close

GOAL = 1.5  # times faster than any of them, at least
SPEC = AttentionSpec(
    heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, value_dim=HEAD_DIM, scale=HEAD_DIM**-0.5, source_dim=WIDTH
)
PUBLISHED = LongShort(window=WINDOW, rank=RANK, sinks=0, counted=False, dual_norm="paper", project_from="source")
PAIRS = {
    "toeplitz": "toeplitz, straightforward",
    "long_short": "long_short, straightforward",
    "long_short layer": "long-short-transformer",
}


def peer(name: str, length: int, training: bool) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A module and random operands."""
    torch.manual_seed(0)
    operands = [torch.randn(1, HEADS, length, HEAD_DIM) for _ in range(3)]
    source = torch.randn(1, length, WIDTH)
    torch.manual_seed(1)
    if name.startswith("toeplitz"):
        mixer = ToeplitzMixer(SPEC, Toeplitz(normalise=False)).train(training)
        if name == "toeplitz":
            return lambda value: mixer(value=value), operands[2:]
        return StraightforwardToeplitz(mixer), operands[2:]
    if name == "long_short layer":
        return LongShortAttention(WIDTH, HEADS, PUBLISHED, bias=False), [source]
    if name == "long-short-transformer":
        from long_short_transformer import long_short_transformer as published  # type: ignore[import-not-found]

        options = {"dim": WIDTH, "heads": HEADS, "dim_head": HEAD_DIM, "causal": False, "window_size": WINDOW}
        return published.LongShortAttention(**options, segment_size=None, r=RANK), [source]
    mixer = LongShortMixer(SPEC, PUBLISHED)
    if name == "long_short":
        return lambda q, k, v, x: mixer(q, k, v, source=x), [*operands, source]
    return StraightforwardLongShort(mixer), [*operands, source]


def check(length: int = 512) -> None:
    """The straightforward forms give our numbers."""
    for name in ("toeplitz", "long_short"):
        (ours, operands), (theirs, _) = peer(name, length, False), peer(PAIRS[name], length, False)
        with torch.no_grad():
            assert_close(theirs(*operands), ours(*operands))


def call_of(name: str, length: int, *, backward: bool) -> Callable[[], object]:
    """One pass."""
    module, operands = peer(name, length, backward)
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return module(*operands)

        return forward
    for operand in operands:
        operand.requires_grad_()

    def both() -> None:
        module(*operands).sum().backward()
        for operand in operands:
            operand.grad = None

    return both


def print_one(name: str, length: str, backward: str, threads: str) -> None:
    """Seconds, and by how many bytes the process grows at most."""
    torch.set_num_threads(int(threads))
    call_of(name, 512, backward=bool(int(backward)))()
    call = call_of(name, int(length), backward=bool(int(backward)))
    grown = grown_bytes(call)
    print(json.dumps({"seconds": steady_seconds(call, int(threads)), "bytes": grown}))


def in_own_process(name: str, length: int, backward: bool, threads: int) -> dict[str, float]:
    """What `print_one` says."""
    found: dict[str, float] = alone(__file__, "--one", name, length, int(backward), threads)
    return found


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "others.json")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print_one(*options.one)
        return
    check()
    torch.set_num_threads(options.threads)
    installed = importlib.util.find_spec("long_short_transformer") is not None
    pairs = {ours: theirs for ours, theirs in PAIRS.items() if installed or theirs != "long-short-transformer"}
    rows: list[dict[str, Any]] = []
    console = Console(width=120)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("passes", total=2 * len(pairs) * len(options.lengths))
        for length in options.lengths:
            for (ours, theirs), backward in ((pair, each) for pair in pairs.items() for each in (False, True)):
                turns = [
                    [in_own_process(name, length, backward, options.threads) for name in (ours, theirs)]
                    for _ in range(options.runs)
                ]
                ratio = {
                    what: statistics.median(other[what] / max(own[what], least) for own, other in turns)
                    for what, least in (("seconds", 1e-9), ("bytes", 2.0**20))
                }
                row = {"ours": ours, "theirs": theirs, "length": length, "backward": backward, "goal": GOAL}
                rows.append({**row, "times_faster": ratio["seconds"], "times_smaller": ratio["bytes"], "turns": turns})
                progress.advance(bar)
    table = Table("ours", "theirs", "tokens", "pass", "ms", "times faster", "times less memory")
    for row in rows:
        took = statistics.median(own["seconds"] for own, _ in row["turns"]) * 1e3
        kind = "forward, backward" if row["backward"] else "forward"
        cells = [f"{took:.1f}", f"{row['times_faster']:.2f}", f"{row['times_smaller']:.2f}"]
        table.add_row(row["ours"], row["theirs"], f"{row['length']:,}", kind, *cells)
    console.print(table)
    command = " ".join(["python", "benchmarks/others.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
