"""Attention materialised in one process, fused in one process, and partitioned over four: the same cores in all.

Run: python benchmarks/distributed.py. The GPU form, for four GPUs beside one: torchrun --nproc-per-node 4
benchmarks/distributed_gpu.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from alone import alone, grown_bytes
from machine import describe
from peers import HEAD_DIM, HEADS
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from remixer.mixers import AttentionSpec
from remixer.mixers.distributed.cost import SCHEMES as NAMES
from remixer.mixers.distributed.cost import Scheme, layout_of
from remixer.mixers.distributed.ranks import ranks_of
from remixer.mixers.distributed.schemes import SCHEMES, Operands, Spread

RANKS = 4
LIBC = ctypes.CDLL(None)
LARGEST_MATERIALISED = 16384  # 12 GiB of scores, beyond 8,192 in several pieces
BUDGET = 6 * 2**30
PARTITIONED: tuple[Scheme, ...] = NAMES[1:]


def spec_of(causal: bool) -> AttentionSpec:
    """Twelve heads of 32."""
    return AttentionSpec(
        heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, value_dim=HEAD_DIM, scale=HEAD_DIM**-0.5, causal=causal
    )


def operands(tokens: int) -> list[Tensor]:
    """Query, key and value of so many tokens."""
    torch.manual_seed(0)
    return [torch.randn(1, HEADS, tokens, HEAD_DIM) for _ in range(3)]


def materialised(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """All scores at once, as a model without a fused kernel writes them: or of as many heads as 4 GiB hold."""
    tokens = query.shape[2]
    heads = max(1, min(HEADS, 2**32 // (4 * tokens**2)))
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1) if causal else None
    mixed = []
    for first in range(0, HEADS, heads):
        q, k, v = (each[:, first : first + heads] for each in (query, key, value))
        scores = q @ k.transpose(-1, -2) * HEAD_DIM**-0.5
        if future is not None:
            scores = scores.masked_fill(future, -torch.inf)
        mixed.append(torch.softmax(scores, -1) @ v)
    return torch.cat(mixed, 1)


def single(name: str, tokens: int, causal: bool) -> Callable[[], Tensor]:
    """One call in one process."""
    query, key, value = operands(tokens)
    if name == "materialised":
        return lambda: materialised(query, key, value, causal)
    return lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def partitioned(scheme: Scheme, tokens: int, causal: bool) -> Callable[[], Tensor]:
    """One call of this process's part."""
    spec = spec_of(causal)
    spread = Spread(spec, ranks_of("sequence"), layout_of(scheme, spec), tokens, tokens)
    given = Operands(*(spread.part(whole, 2, tokens) for whole in operands(tokens)))
    return lambda: SCHEMES[scheme](given, spread)


def seconds(call: Callable[[], Tensor], runs: int, together: bool = False) -> float:
    """The median of some runs; of processes, from when all are there to when the last is done."""
    times = []
    with torch.no_grad():
        call()
        for _ in range(runs):
            if together:
                dist.barrier()
            start = time.perf_counter()
            call()
            if together:
                dist.barrier()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def work(rank: int, meeting: str, tokens: list[int], runs: int, pipe: Any) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    for causal in (False, True):
        for length in tokens:
            for scheme in PARTITIONED:
                call = partitioned(scheme, length, causal)
                LIBC.malloc_trim(0)  # what earlier calls left is not there to be used again
                with torch.no_grad():
                    grown = grown_bytes(call)
                most = torch.tensor([grown])
                dist.all_reduce(most, dist.ReduceOp.MAX)
                took = seconds(call, runs, together=True)
                if rank == 0:
                    pipe.send((causal, length, scheme, took, int(most)))
    if rank == 0:
        pipe.send(None)
    dist.destroy_process_group()


def measure(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """All columns at all lengths."""
    rows: list[dict[str, Any]] = []
    bar = progress.add_task("lengths", total=2 * len(options.lengths) * (2 + len(PARTITIONED)))
    for causal in (False, True):
        for length in options.lengths:
            for name in ("materialised", "fused"):
                progress.advance(bar)
                if name == "materialised" and length > LARGEST_MATERIALISED:
                    continue
                took = seconds(single(name, length, causal), options.runs)
                peak = alone(__file__, "--measure-memory", name, length, int(causal))
                rows.append({"how": name, "causal": causal, "length": length, "seconds": took, "bytes": peak})
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = context.Pipe()
        given = (f"{folder}/meeting", options.lengths, options.runs, theirs)
        running = [context.Process(target=work, args=(rank, *given)) for rank in range(RANKS)]
        for process in running:
            process.start()
        while (found := mine.recv()) is not None:
            causal, length, scheme, took, peak = found
            rows.append({"how": scheme, "causal": causal, "length": length, "seconds": took, "bytes": peak})
            progress.advance(bar)
        for process in running:
            process.join()
    for row in rows:
        for peer in ("materialised", "fused"):
            other = [each for each in rows if each["how"] == peer and _same(each, row)]
            if other and row["how"] in PARTITIONED:
                row[f"to_{peer}"] = other[0]["seconds"] / row["seconds"]
    return rows


def longest(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many tokens fit into the budget per process, from the two longest lengths that were measured."""
    found = {}
    for how in dict.fromkeys(row["how"] for row in rows):
        mine = sorted((row["length"], row["bytes"]) for row in rows if row["how"] == how and not row["causal"])
        if how == "materialised":
            mine = [one for one in mine if one[0] <= 8192]
        if len(mine) < 2:
            continue
        (short, less), (long, more) = mine[-2:]
        power = 2 if how == "materialised" else 1
        slope = (more - less) / (long**power - short**power)
        if slope > 0:
            found[how] = int((long**power + (BUDGET - more) / slope) ** (1 / power))
    return found


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["causal"] == other["causal"] and one["length"] == other["length"])


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for reading."""
    table = Table("direction", "length", "attention", "seconds", "to materialised", "to fused", "MiB")
    for row in sorted(rows, key=lambda row: (row["causal"], row["length"])):
        table.add_row(
            "causal" if row["causal"] else "bidirectional",
            f"{row['length']:,}",
            row["how"],
            f"{row['seconds']:.3f}",
            *(f"{row[name]:.2f}" if name in row else "" for name in ("to_materialised", "to_fused")),
            f"{row['bytes'] / 2**20:.0f}",
        )
    return table


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distributed.json")
    parser.add_argument("--measure-memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        name, length, causal = options.measure_memory
        single(name, 64, bool(int(causal)))()
        print(json.dumps(grown_bytes(single(name, int(length), bool(int(causal))))))
        return
    torch.set_num_threads(os.cpu_count() or 1)
    console = Console(width=120)
    with Progress(console=console, transient=True) as progress:
        rows = measure(options, progress)
    console.print(table_of(rows))
    fits = longest(rows)
    console.print("longest in 6 GiB per process:", {how: f"{tokens:,}" for how, tokens in fits.items()})
    command = " ".join(["python", "benchmarks/distributed.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "ranks": RANKS, "rows": rows, "longest": fits}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
