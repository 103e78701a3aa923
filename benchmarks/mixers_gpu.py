"""Toeplitz and Long-Short on a GPU in bfloat16, beside FlashAttention and a sliding window through FlexAttention.

FlashAttention is what `F.scaled_dot_product_attention` is held to; the sliding window is `flex_attention`, compiled,
over as many tokens as Long-Short's window, its block mask made beforehand. Forward, and forward with backward, and the
most memory that either takes beyond its operands. All peers of a length take turns, as in `benchmarks/mixers.py`; what
is compiled is compiled before. It needs a GPU.

Run: python benchmarks/mixers_gpu.py [--lengths 1024 4096 16384 65536] [--batch 4] [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, Toeplitz, ToeplitzMixer

HEADS, HEAD_DIM = 12, 64
WINDOW, RANK = 256, 32
PEERS = ("attention", "sliding_window", "toeplitz", "long_short")
NO_GPU = "benchmarks/mixers_gpu.py needs a GPU, and torch finds none: nothing was measured."


def forward_of(name: str, causal: bool, length: int, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What a peer makes of queries, keys and values, each (B, H, T, D)."""
    spec = AttentionSpec(
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=HEAD_DIM,
        value_dim=HEAD_DIM,
        scale=HEAD_DIM**-0.5,
        causal=causal,
        dtype=torch.bfloat16,
    )
    if name == "sliding_window":
        return sliding_window(causal, length, device)
    if name == "attention":

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(query, key, value, is_causal=causal)

        return attend
    if name == "toeplitz":
        toeplitz = ToeplitzMixer(spec, Toeplitz()).to(device, torch.bfloat16).eval()
        return lambda query, key, value: toeplitz(value=value)
    config = LongShort(window=WINDOW, rank=1 if causal else RANK, sinks=0)
    return LongShortMixer(spec, config).to(device, torch.bfloat16).eval()


def sliding_window(causal: bool, length: int, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The last WINDOW tokens, or fewer than WINDOW to either side: about as many as Long-Short's window shows."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q - k < WINDOW) if causal else (q - k).abs() < WINDOW

    block_mask = create_block_mask(seen, None, None, length, length, device=device, _compile=True)
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    return lambda query, key, value: compiled(query, key, value, block_mask=block_mask)


def calls_of(name: str, causal: bool, length: int, batch: int, device: str) -> dict[str, Callable[[], object]]:
    """A forward pass over random operands, and one with its backward pass, by name."""
    torch.manual_seed(0)
    shape = (batch, HEADS, length, HEAD_DIM)
    operands = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    weight = torch.randn(shape, device=device, dtype=torch.bfloat16)
    function = forward_of(name, causal, length, device)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*operands)

    def both() -> None:
        function(*operands).backward(weight)
        for operand in operands:
            operand.grad = None

    return {"forward": forward, "forward and backward": both}


def peak_bytes(call: Callable[[], object]) -> int:
    """By how much the memory in use grows at most during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes that is repeated for a tenth of a second."""
    return float(Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.1).median)


def measure(options: argparse.Namespace, progress: Progress) -> Iterator[dict[str, Any]]:
    """All rows: by length, direction, peer, and whether there is a backward pass."""
    bar = progress.add_task("passes", total=4 * len(options.lengths) * options.runs)
    for length in options.lengths:
        for causal in (False, True):
            peers = {name: calls_of(name, causal, length, options.batch, "cuda") for name in PEERS}
            for what in ("forward", "forward and backward"):
                calls = {name: calls[what] for name, calls in peers.items()}
                for call in calls.values():
                    for _ in range(2):  # compiles, and fills the allocator
                        call()
                peaks = {name: peak_bytes(call) for name, call in calls.items()}
                times: dict[str, list[float]] = {name: [] for name in PEERS}
                for _ in range(options.runs):
                    for name, call in calls.items():
                        times[name].append(seconds(call))
                    progress.advance(bar)
                for name in PEERS:
                    pairs = zip(times["attention"], times[name], strict=True)
                    yield {
                        "mixer": name,
                        "causal": causal,
                        "length": length,
                        "batch": options.batch,
                        "pass": what,
                        "seconds": statistics.median(times[name]),
                        "ratio": statistics.median(flash / took for flash, took in pairs),
                        "peak_bytes": peaks[name],
                    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for reading."""
    table = Table("length", "direction", "pass", "mixer", "ms", "x FlashAttention", "peak MiB")
    for row in rows:
        table.add_row(
            f"{row['length']:,}",
            "causal" if row["causal"] else "bidirectional",
            row["pass"],
            row["mixer"],
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
        )
    return table


def main() -> None:
    """Measure, write the JSON after each row, print; or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mixers_gpu.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    console = Console()
    command = " ".join(["python", "benchmarks/mixers_gpu.py", *sys.argv[1:]])
    machine = {**describe(), "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    rows: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # FlexAttention is compiled for each length, direction and pass.
    with torch._dynamo.config.patch(recompile_limit=128), Progress(console=console, transient=True) as progress:
        for row in measure(options, progress):
            rows.append(row)
            result = {"command": command, "machine": machine, "rows": rows}
            options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(table_of(rows))
    console.print(machine)


if __name__ == "__main__":
    main()
