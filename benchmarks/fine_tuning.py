"""What fine-tuning makes of a rewritten MiniLM: with and without transfer before, all weights or the mixers alone.

The task is to tell which module of the standard library 96 tokens are from: four modules, 192 pieces to train on, once
each in batches of 8, and 64 held out. The same order and seed everywhere; the linear layer on top learns at 1e-3.
Transfer takes the same pieces, without labels.

Run: python benchmarks/fine_tuning.py
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import sys
import tarfile
import time
import typing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe
from pretrained import minilm
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import remixer
from remixer import LongShort, Toeplitz

MODULES = (argparse, inspect, tarfile, typing)
LENGTH, BATCH, PIECES, TRAINED = 96, 8, 64, 192
TRANSFER = 40  # steps, of the stage "attention"
RATES = {"all": (1e-4, 1e-4), "mixers faster": (1e-3, 1e-4), "mixers alone": (1e-3, 0.0)}  # of mixers, and of others
HEAD_RATE = 1e-3


def pieces(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids (256, 96) and labels (256,), shuffled."""
    random = torch.Generator().manual_seed(0)
    found = []
    for module in MODULES:
        ids = tokenizer(inspect.getsource(module), return_tensors="pt", verbose=False).input_ids[0]
        rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        found.append(rows[torch.randperm(len(rows), generator=random)[:PIECES]])
    order = torch.randperm(PIECES * len(MODULES), generator=random)
    return torch.cat(found)[order], torch.arange(len(MODULES)).repeat_interleave(PIECES)[order]


def logits(encoder: nn.Module, head: nn.Module, ids: Tensor) -> Tensor:
    """(B, classes)."""
    return head(encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1))


def fine_tuned(encoder: nn.Module, rates: tuple[float, float], ids: Tensor, labels: Tensor) -> dict[str, float]:
    """Held-out loss and accuracy of a copy after training, and the CPU seconds that took."""
    start = time.process_time()
    torch.manual_seed(0)
    encoder, head = copy.deepcopy(encoder).train(), nn.Linear(384, len(MODULES))
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": HEAD_RATE}]
    for name, parameter in encoder.named_parameters():
        rate = rates[0] if ".mixer." in name else rates[1]
        parameter.requires_grad_(rate > 0)
        if rate:
            groups.append({"params": [parameter], "lr": rate})
    optimiser = torch.optim.AdamW(groups)
    for batch, answers in zip(ids[:TRAINED].split(BATCH), labels[:TRAINED].split(BATCH), strict=True):
        F.cross_entropy(logits(encoder, head, batch), answers).backward()
        optimiser.step()
        optimiser.zero_grad()
    seconds = time.process_time() - start
    with torch.no_grad():
        found = logits(encoder.eval(), head, ids[TRAINED:])
    right = (found.argmax(-1) == labels[TRAINED:]).double().mean()
    return {"loss": F.cross_entropy(found, labels[TRAINED:]).item(), "accuracy": right.item(), "cpu_seconds": seconds}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fine_tuning.json")
    options = parser.parse_args()
    original, tokenizer = minilm()
    ids, labels = pieces(tokenizer)
    data = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids[:TRAINED].split(BATCH)]
    rows: list[dict[str, Any]] = []

    def measure(encoder: nn.Module, mixer: str, transfer: int, trained: str) -> None:
        told = {"mixer": mixer, "transfer_steps": transfer, "trained": trained}
        rows.append(told | fine_tuned(encoder, RATES[trained], ids, labels))
        print(rows[-1], file=sys.stderr)

    measure(original, "attention", 0, "all")
    for name, config in {"toeplitz": Toeplitz(gate="value"), "long_short": LongShort(window=8)}.items():
        small = remixer.remix(original, config, data[0])
        for trained in RATES:
            measure(small, name, 0, trained)
        remixer.transfer(small, data, steps=TRANSFER, stages=["attention"], progress=False)
        measure(small, name, TRANSFER, "all")
    table = Table(title=f"{len(ids) - TRAINED} held-out pieces after {TRAINED // BATCH} steps")
    for column in ("mixer", "transfer", "trained", "loss", "accuracy"):
        table.add_column(column)
    for row in rows:
        cells = (row["mixer"], str(row["transfer_steps"]), row["trained"])
        table.add_row(*cells, f"{row['loss']:.2f}", f"{row['accuracy']:.0%}")
    Console(width=120).print(table)
    result = {"command": " ".join(["python", *sys.argv]), "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
