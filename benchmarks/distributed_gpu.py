"""The paper's setting: attention materialised and fused on one GPU, and partitioned over all, in bfloat16.

It needs one GPU per process, and has not been measured.

Run: torchrun --nproc-per-node 4 benchmarks/distributed_gpu.py [--lengths 16384 65536 262144] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from machine import describe
from rich.console import Console
from rich.table import Table
from torch import Tensor

from remixer.mixers import AttentionSpec
from remixer.mixers.distributed.cost import SCHEMES as NAMES
from remixer.mixers.distributed.cost import Scheme, layout_of
from remixer.mixers.distributed.ranks import ranks_of
from remixer.mixers.distributed.schemes import SCHEMES, Operands, Spread

HEADS, HEAD_DIM = 16, 64
NO_GPU = "benchmarks/distributed_gpu.py needs a GPU per process, and torch finds too few: nothing was measured."


def single(name: str, tokens: int, causal: bool, device: torch.device) -> Callable[[], Tensor]:
    """One call on one GPU."""
    query, key, value = operands(tokens, device)
    if name == "fused":
        return lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal)

    def materialised() -> Tensor:
        scores = query @ key.transpose(-1, -2) * HEAD_DIM**-0.5
        if causal:
            future = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        return torch.softmax(scores, -1) @ value

    return materialised


def operands(tokens: int, device: torch.device) -> list[Tensor]:
    """Query, key and value of so many tokens, the same on every process."""
    torch.manual_seed(0)
    shape = (1, HEADS, tokens, HEAD_DIM)
    return [torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3)]


def partitioned(scheme: Scheme, tokens: int, causal: bool, device: torch.device) -> Callable[[], Tensor]:
    """One call of this process's part."""
    sizes = {"heads": HEADS, "kv_heads": HEADS, "head_dim": HEAD_DIM, "value_dim": HEAD_DIM}
    spec = AttentionSpec(**sizes, scale=HEAD_DIM**-0.5, causal=causal, dtype=torch.bfloat16)
    spread = Spread(spec, ranks_of("sequence"), layout_of(scheme, spec), tokens, tokens)
    given = Operands(*(spread.part(whole, 2, tokens) for whole in operands(tokens, device)))
    return lambda: SCHEMES[scheme](given, spread)


def measure(call: Callable[[], Tensor], runs: int, together: bool) -> tuple[float, int] | None:
    """Median seconds and the most bytes of a call, or None where it doesn't fit."""
    times = []
    try:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(runs + 1):
            if together:
                dist.barrier()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    except torch.cuda.OutOfMemoryError:
        return None
    return statistics.median(times[1:]), torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 65536, 262144])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "distributed_gpu.json")
    options = parser.parse_args()
    rank, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.device_count() < max(1, size):
        sys.exit(NO_GPU)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for causal in (False, True):
            for length in options.lengths:
                calls = {name: single(name, length, causal, device) for name in ("materialised", "fused")}
                calls |= {scheme: partitioned(scheme, length, causal, device) for scheme in NAMES[1:]}
                for how, call in calls.items():
                    found = measure(call, options.runs, how in NAMES)
                    took, peak = found or (None, None)
                    rows.append({"how": how, "causal": causal, "length": length, "seconds": took, "bytes": peak})
    if dist.get_rank() == 0:
        table = Table("direction", "length", "attention", "seconds", "MiB")
        for row in rows:
            cells = ("-", "-") if row["seconds"] is None else (f"{row['seconds']:.4f}", f"{row['bytes'] / 2**20:.0f}")
            table.add_row("causal" if row["causal"] else "bidirectional", f"{row['length']:,}", row["how"], *cells)
        Console(width=120).print(table)
        command = " ".join(["torchrun", "--nproc-per-node", str(size), "benchmarks/distributed_gpu.py", *sys.argv[1:]])
        machine = describe() | {"gpu": torch.cuda.get_device_name(), "gpus": size}
        result = {"command": command, "machine": machine, "ranks": size, "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
