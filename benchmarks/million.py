"""A million tokens through the real MiniLM in one forward pass, all its attentions replaced.

The floor is what the pass must compute, over the rate of matrix products measured in the same run. The original's
time is that of its attentions, extrapolated from two lengths: four times as long for twice the tokens. Position
embeddings are those of MiniLM, used again every 512 tokens: this is about cost, and says nothing about quality.

Run: python benchmarks/million.py [--tokens 1048576] [--mixers long_short toeplitz] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from alone import alone, grown_bytes
from machine import describe
from peers import rates, seconds
from pretrained import minilm
from rich.console import Console
from rich.table import Table
from torch import Tensor

import remixer
from remixer import LongShort, Toeplitz

CONFIGS = {"long_short": LongShort(window=128, rank=32), "toeplitz": Toeplitz()}
GOAL = 1.6  # times the floor at most


def inputs_of(tokens: int, rows: int = 1) -> dict[str, Tensor]:
    """Random ids, all of which exist."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (rows, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def operations(model: Any, mixer: str, tokens: int) -> float:
    """Floating-point operations of a pass: projections, feed-forward layers, and what the mixer can't do without."""
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    projections = 4 if mixer != "toeplitz" else 2
    dense = 2.0 * tokens * width * (projections * width + 2 * inner)
    if mixer == "toeplitz":
        size = 2 * tokens
        mixed = width * (2 * 2.5 * size * torch.tensor(float(size)).log2().item() + 3 * size)
    else:
        chosen = CONFIGS["long_short"]
        mixed = 4.0 * tokens * width * (2 * chosen.window + 2.5 * chosen.rank)
    return config.num_hidden_layers * (dense + mixed)


def one_pass(mixer: str, tokens: int, threads: int) -> dict[str, float]:
    """Seconds of one pass, and by how many bytes it grows the process at most."""
    torch.set_num_threads(threads)
    model, _ = minilm()
    small = remixer.remix(model, CONFIGS[mixer], inputs_of(64, 2), max_length=max(tokens, 4096))
    flops, _ = rates()
    with torch.no_grad():
        small(**inputs_of(4096))
        long = inputs_of(tokens)
        outputs: list[Any] = []
        start = time.perf_counter()
        grown = grown_bytes(lambda: outputs.append(small(**long)))
        took = time.perf_counter() - start
        assert outputs[0].last_hidden_state.isfinite().all()
    floor = operations(model, mixer, tokens) / flops
    return {"seconds": took, "bytes": grown, "floor": floor, "gflops": flops / 1e9}


def original_seconds(tokens: int, lengths: tuple[int, int] = (4096, 8192)) -> float:
    """What the original's attentions alone would take: quadratic from the longer of two lengths."""
    model, _ = minilm()
    heads, size = model.config.num_attention_heads, model.config.hidden_size // model.config.num_attention_heads
    took = 0.0
    for length in lengths:
        operands = [torch.randn(1, heads, length, size) for _ in range(3)]
        with torch.no_grad():
            took = min(seconds(lambda: F.scaled_dot_product_attention(*operands)) for _ in range(3))  # noqa: B023
    return model.config.num_hidden_layers * took * (tokens / lengths[-1]) ** 2


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--mixers", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "million.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_pass(options.one, options.tokens, options.threads)))
        return
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    rows: list[dict[str, Any]] = []
    for mixer in options.mixers:
        with console.status(f"{options.tokens:,} tokens with {mixer}"):
            found = alone(__file__, "--one", mixer, "--tokens", options.tokens, "--threads", options.threads)
        rows.append({"mixer": mixer, "tokens": options.tokens, **found, "goal": GOAL})
    original = original_seconds(options.tokens)
    table = Table(
        "mixer", "tokens", "seconds", "x floor", "goal", "peak MiB", title="MiniLM, all six attentions replaced"
    )
    for row in rows:
        ratio = row["seconds"] / row["floor"]
        cells = [f"{row['seconds']:.1f}", f"{ratio:.2f}", f"{GOAL}", f"{row['bytes'] / 2**20:,.0f}"]
        table.add_row(row["mixer"], f"{row['tokens']:,}", *cells)
    console.print(table)
    console.print(f"the original's attentions alone, extrapolated: {original:,.0f} s")
    command_line = " ".join(["python", "benchmarks/million.py", *sys.argv[1:]])
    result = {"command": command_line, "machine": describe(), "rows": rows, "original_seconds": original}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
