"""What transfer wins back of MiniLM's sentence embeddings, its attentions replaced.

Docstrings of Python's standard library, up to 128 tokens each, split by file: to learn from, to choose options by, and
to judge by. What counts: the cosine to the original's embedding and how many of the ten nearest of the texts stay the
same, on those that judge; `--choose` measures on those that choose instead, and writes nothing.

Run: python benchmarks/transfer_encoder.py [--minutes 10] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from machine import describe
from pretrained import minilm
from rich.console import Console
from rich.table import Table
from texts import alike, padded, paragraphs
from torch import Tensor

import remixer
from remixer import LongShort, Toeplitz
from remixer.evaluation import embeddings

RANK = 16  # of the adapters
BATCH = 8  # texts
GATED, WEIGHED = Toeplitz(gate="value"), Toeplitz(gate="value", weigh="key")
VARIANTS: dict[str, Any] = {
    "long_short(window=32), 6 sites": LongShort(window=32),
    "toeplitz(gate='value'), 6 sites": GATED,
    "toeplitz(gate='value', weigh='key'), 6 sites": WEIGHED,
    "toeplitz(gate='value', weigh='key'), the 3 sites that a plan picks": None,
}


def figures(small: Any, model: Any, held: list[dict[str, Tensor]]) -> dict[str, float]:
    """Cosine, mean and lowest, and overlap@10."""
    found = embeddings(small, model, held)
    return {"cosine": found.cosine, "lowest": found.lowest, "overlap": found.overlap}


def main() -> None:
    """Transfer, measure, print, write the JSON after each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "transfer_encoder.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = minilm()
    found = paragraphs()
    kept = (found.choosing if options.choose else found.judged)[: options.texts]
    data, held = padded(tokenizer, alike(found.learned, BATCH), 128, BATCH), padded(tokenizer, kept, 128, 50)
    earlier: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows: dict[str, Any] = earlier.get("rows", {})
    commands = earlier["command"].split("; ") if earlier else []
    mine = shlex.join(["python", "benchmarks/transfer_encoder.py", *sys.argv[1:]])
    for name in options.only:
        mixer: Any = VARIANTS[name]
        if mixer is None:
            given = {"mixers": [WEIGHED], "budget": 0.55, "length": 10**6, "transfer_steps": 40, "loss": "mean"}
            mixer = remixer.plan(model, data[0], data, rounds=2, **given)
        small = remixer.remix(model, mixer, data[0])
        before = figures(small, model, held)
        report = remixer.transfer(small, data, minutes=options.minutes, loss="mean", rank=RANK)
        stages = [{"name": stage.name, "steps": stage.steps, "seconds": stage.seconds} for stage in report.stages]
        replaced = [site.name for site in small.report.sites if site.status == "replaced"]
        after = figures(small, model, held)
        rows[name] = {"before": before, "after": after, "stages": stages, "sites": replaced, "batch": BATCH}
        command = "; ".join(dict.fromkeys([*commands, mine]))
        texts = {"learned": len(found.learned), "held out": len(kept)}
        result = {"command": command, "machine": describe(), "texts": texts, "rows": rows}
        if not options.choose:
            options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        show(rows)


def show(rows: dict[str, Any]) -> None:
    """A table on the terminal."""
    table = Table(title="MiniLM's embeddings of held-out docstrings, beside the original's")
    for head in ("mixer", "cosine before", "after", "overlap@10 before", "after"):
        table.add_column(head)
    for name, row in rows.items():
        cells = [f"{row[when][what]:.3f}" for what in ("cosine", "overlap") for when in ("before", "after")]
        table.add_row(name, *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
