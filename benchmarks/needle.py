"""Does a mixer remember word for word? A secret planted far back in real text, asked for at the end.

"# the secret key is: " and eight random tokens stand 300 to 400 tokens before the end of a window of source code, and
the same words at the end. What counts is the log-probability of the eight tokens, and how often each is the most
probable one, beside what full attention makes of it, and beside chance: full attention where another secret was
planted.

Run: python benchmarks/needle.py [--samples 16] [--length 512] [--window 64]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from machine import describe
from pretrained import padded_batch, smollm2, standard_library_windows
from rich.console import Console
from rich.table import Table

import remixer
from remixer import LongShort
from remixer.evaluation import needle

CUE = "\n# the secret key is: "
SECRET = 8
BACK = (300, 400)


def configs(window: int) -> dict[str, LongShort]:
    """What to measure, by name."""
    retrieving = LongShort(window=window, retrieve=8, retrieve_block=4)
    return {
        f"long_short(window={window}, rank=0)": LongShort(window=window, rank=0),
        f"long_short(window={window})": LongShort(window=window),
        f"long_short(window={window}, retrieve=8, retrieve_block=4)": retrieving,
        f"long_short(window={window}, retrieve=8)": LongShort(window=window, retrieve=8),
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "needle.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = smollm2()
    ids = standard_library_windows(tokenizer, options.samples, options.length)
    windows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    secret = {"cue": tokenizer(CUE)["input_ids"], "vocabulary": (1000, 40000), "secret": SECRET}
    (full,) = needle(model, windows, [BACK], **secret)
    rows: list[dict[str, Any]] = [{"mixer": "full attention", **asdict(full.planted)}]
    rows.append({"mixer": "full attention, another secret planted", **asdict(full.baseline)})
    for name, config in configs(options.window).items():
        small = remixer.remix(model, config, padded_batch(2, 64, 1000))
        (found,) = needle(small, windows, [BACK], **secret, baseline=False)
        rows.append({"mixer": name, **asdict(found.planted)})
    table = Table(title=f"SmolLM2-135M, {options.samples} secrets in {options.length} tokens, no training")
    for head in ("mixer", "first token", "others", "top-1"):
        table.add_column(head, justify="left" if head == "mixer" else "right")
    for row in rows:
        table.add_row(row["mixer"], f"{row['first']:.2f}", f"{row['rest']:.2f}", f"{row['top1']:.2f}")
    Console(width=120).print(table)
    command = " ".join(["python", "benchmarks/needle.py", *sys.argv[1:]])
    result = {"command": command, "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
