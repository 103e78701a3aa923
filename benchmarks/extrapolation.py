"""Train on 512 bytes, read 14,336: a byte-level TNN, and beside it a Transformer with learned positions.

The protocol of Qin et al. (2023, "Toeplitz Neural Network for Sequence Modeling", length extrapolation): the same
held-out text in blocks that don't overlap, of 512 bytes and longer; each byte is predicted from those before it in
its block. The text is Python's standard library. Both models see the same batches in the same order.

The Transformer's table of positions has 14,336 entries, of which training reaches the first 512: nothing better can
be done with learned positions, short of leaving the text beyond 512 unread.

Run: python benchmarks/extrapolation.py [--steps 450] [--batch 8] [--width 128] [--layers 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from small_models import Model, TransformerBlock
from standard_library import modules, split
from torch import Tensor, nn
from training import train

from remixer.mixers import SimpleRMSNorm, SoftmaxConfig, ToeplitzBlock

START = 256  # stands before the first byte of a block
LENGTHS = [512, 1024, 2048, 4096, 8192, 14336]
WHOLE = math.lcm(*LENGTHS)  # bytes that all these lengths divide
TARGET = 1.01


def tnn(width: int, layers: int) -> Model:
    """Causal Toeplitz blocks; no positions, which the relative position encoder makes needless."""
    blocks = [ToeplitzBlock(width, causal=True) for _ in range(layers)]
    return Model(START + 1, width, blocks, SimpleRMSNorm(), START)


def transformer(width: int, layers: int, positions: int) -> Model:
    """Causal softmax attention, heads of 32, learned positions."""
    blocks = [TransformerBlock(width, width // 32, SoftmaxConfig(), causal=True) for _ in range(layers)]
    return Model(START + 1, width, blocks, nn.LayerNorm(width), START, positions=positions)


def batches(text: Tensor, rows: int, length: int, seed: int = 0) -> Iterator[Tensor]:
    """Random pieces of a text, (rows, length) ids."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - length + 1, (rows, 1), generator=generator)
        yield text[starts + torch.arange(length)]


def loss_of(model: nn.Module, pieces: Tensor) -> Tensor:
    """Nats per byte, all bytes of all pieces being predicted."""
    ids = F.pad(pieces[:, :-1], (1, 0), value=START)
    return F.cross_entropy(model(ids).flatten(0, 1), pieces.flatten())


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Tensor, length: int) -> float:
    """Of a text read in blocks of one length; the last one may be shorter."""
    blocks = text.split(length)
    nats = [float(loss_of(model, block[None])) * len(block) for block in blocks]
    return sum(nats) / len(text) / math.log(2.0)


def plot(rows: list[dict[str, Any]], trained: int, path: Path) -> None:
    """Bits per byte over the length, a line for each model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        axes.plot([row["length"] for row in mine], [row["bits_per_byte"] for row in mine], marker="o", label=name)
    axes.axvline(trained, color="grey", linestyle="--", linewidth=1, label=f"trained on {trained} bytes")
    axes.set_xscale("log", base=2)
    lengths = sorted({row["length"] for row in rows})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8)
    axes.set_xlabel("bytes per block")
    axes.set_ylabel("bits per byte")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def measure(options: argparse.Namespace, progress: Progress) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Both models: a row for every length, and what training took."""
    known, unknown = (torch.tensor(list(text)) for text in split(modules(), one_in=8))
    unknown = unknown[: options.pieces * WHOLE]
    build = {
        "TNN": lambda: tnn(options.width, options.layers),
        "Transformer, learned positions": lambda: transformer(options.width, options.layers, max(options.lengths)),
    }
    rows, trainings = [], []
    for name, make in build.items():
        torch.manual_seed(0)
        model, pieces = make(), batches(known, options.batch, options.length)
        steps, rate = options.steps, options.rate
        warmup = steps // 10
        took = train(model, pieces, loss_of, steps=steps, rate=rate, warmup=warmup, progress=progress, name=name)
        trainings.append({"model": name, "parameters": model.size(), **took})
        bar = progress.add_task(f"{name}, reading", total=len(options.lengths) + 1)
        trained = bits_per_byte(model, unknown, options.length)
        for length in options.lengths:
            progress.advance(bar)
            bits = bits_per_byte(model, unknown, length)
            rows.append({"model": name, "length": length, "bits_per_byte": bits, "ratio": bits / trained})
        progress.advance(bar)
    return rows, trainings


def table_of(rows: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    """The rows for reading."""
    title = f"trained on {options.length} bytes, {options.steps} steps of {options.batch} sequences"
    table = Table("model", "bytes per block", "bits per byte", f"to {options.length}", title=title)
    for row in rows:
        table.add_row(row["model"], f"{row['length']:,}", f"{row['bits_per_byte']:.3f}", f"{row['ratio']:.4f}")
    return table


def main() -> None:
    """Train, measure, print, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="bytes of a training sequence")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="bytes of a block when tested")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--pieces", type=int, default=2, help=f"test on so many times {WHOLE:,} bytes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "extrapolation.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    with Progress(console=console, transient=True) as progress:
        rows, trainings = measure(options, progress)
    console.print(table_of(rows, options))
    last = next(row for row in reversed(rows) if row["model"] == "TNN")
    met = "met" if last["ratio"] <= TARGET else "missed"
    console.print(f"TNN at {last['length']:,} bytes: {last['ratio']:.4f}, at most {TARGET} is promised: {met}")
    budget = {key: getattr(options, key) for key in ("steps", "batch", "length", "width", "layers", "rate", "pieces")}
    command = " ".join(["python", "benchmarks/extrapolation.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "budget": budget, "trainings": trainings, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(rows, options.length, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
