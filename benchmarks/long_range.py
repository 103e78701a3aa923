"""Three token mixers trained from scratch on tasks of the Long Range Arena's kind: accuracy and speed side by side.

ListOps is the Arena's task with shorter expressions; Text asks which package of Python's standard library 1,024 bytes
come from. `toeplitz` is a TNN; `long_short` and `softmax` are Transformers that differ in the attention only. All have
two layers of width 64 with about as many parameters, and see the same batches in the same order. A few minutes of one
core say which mixer learns anything and what a step costs, not what they reach in the end.

`--full` takes the papers' sizes, rates and lengths in place of these. It needs a GPU and has not been measured.

Run: python benchmarks/long_range.py [--tasks ListOps Text] [--threads 1], or on a GPU --full --device cuda
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from long_range_settings import FULL, MIXERS, SMALL, build
from long_range_tasks import Batch, Task, listops_task, text_task
from machine import describe
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from training import train

TASKS = ("ListOps", "Text")


@functools.cache
def task_of(name: str, rows: int, tests: int, full: bool) -> Task:
    """A task in batches of so many rows."""
    if name == "ListOps":
        lengths = {"min_length": 500, "max_length": 2000} if full else {"min_length": 64, "max_length": 256}
        return listops_task(rows=rows, tests=tests, **lengths)
    return text_task(rows=rows, tests=tests, length=4096 if full else 1024)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy."""
    ids, padding, labels = on_device_of(model, batch)
    return F.cross_entropy(model(ids, padding), labels)


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    """Share of labels that the largest output names."""
    right = total = 0
    for batch in batches:
        ids, padding, labels = on_device_of(model, batch)
        right += int((model(ids, padding).argmax(-1) == labels).sum())
        total += len(labels)
    return right / total


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """A batch where the model's parameters are."""
    device = next(model.parameters()).device
    ids, padding, labels = batch
    return ids.to(device), None if padding is None else padding.to(device), labels.to(device)


def row_of(name: str, mixer: str, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """Train one mixer on one task."""
    setting = (FULL if options.full else SMALL)[mixer, name]
    if options.steps:
        setting = replace(setting, steps=options.steps, warmup=min(setting.warmup, options.steps // 10))
    task = task_of(name, setting.rows, options.tests, options.full)
    torch.manual_seed(options.seed)
    model = build(mixer, setting, task.vocabulary, task.classes, task.length).to(options.device)
    took = train(
        model,
        task.train(),
        loss_of,
        steps=setting.steps,
        rate=setting.rate,
        weight_decay=setting.weight_decay,
        warmup=setting.warmup,
        progress=progress,
        name=f"{name}, {mixer}",
    )
    return {
        "task": name,
        "mixer": mixer,
        "length": task.length,
        "accuracy": accuracy(model, task.test),
        "chance": task.chance,
        "tests": sum(len(labels) for _, _, labels in task.test),
        "parameters": model.size(),
        **took,
        "setting": asdict(setting),
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for reading."""
    table = Table("task", "tokens", "mixer", "accuracy", "chance", "steps / CPU s", "budget", "parameters")
    for row in rows:
        accuracy, chance = row["accuracy"], row["chance"]
        error = math.sqrt(accuracy * (1.0 - accuracy) / row["tests"])
        setting = row["setting"]
        table.add_row(
            row["task"],
            f"{row['length']:,}",
            row["mixer"],
            f"{accuracy:.1%} +- {error:.1%}",
            f"{chance:.1%}",
            f"{row['steps_per_cpu_second']:.2f}",
            f"{setting['steps']} steps of {setting['rows']}",
            f"{row['parameters']:,}",
        )
    return table


def main() -> None:
    """Train, measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=MIXERS)
    parser.add_argument("--tests", type=int, default=480, help="samples of the test")
    parser.add_argument("--steps", type=int, help="in place of the setting's")
    parser.add_argument("--full", action="store_true", help="the papers' settings, not measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the models' first weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "long_range.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    with Progress(console=console, transient=True) as progress:
        rows = [row_of(name, mixer, options, progress) for name in options.tasks for mixer in options.mixers]
    console.print(table_of(rows))
    command = " ".join(["python", "benchmarks/long_range.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
