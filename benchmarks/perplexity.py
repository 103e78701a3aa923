"""What replacing all attentions of SmolLM2-135M does to its perplexity, before any training.

Windows are the first 1,024 tokens of modules of Python's standard library, at even distances in the list of modules.
The figure that counts is the ratio to full attention on the same windows, with the standard error of its logarithm.

Run: python benchmarks/perplexity.py [--windows 16] [--length 1024]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from machine import describe
from pretrained import padded_batch, smollm2, standard_library_windows
from rich.console import Console
from rich.table import Table

import remixer
from remixer import LongShort
from remixer.evaluation import perplexity

CONFIGS = {
    "long_short(window=128, sinks=4)": LongShort(window=128, sinks=4),
    "long_short(window=128, sinks=4, memory='dyadic')": LongShort(window=128, sinks=4, memory="dyadic"),
    "long_short(window=128, sinks=4, retrieve=8)": LongShort(window=128, sinks=4, retrieve=8),
    "long_short(window=128, sinks=4, rank=0)": LongShort(window=128, sinks=4, rank=0),
    "long_short(window=128, sinks=0, rank=0)": LongShort(window=128, sinks=0, rank=0),
}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "perplexity.json")
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = smollm2()
    ids = standard_library_windows(tokenizer, options.windows, options.length)
    windows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    start = time.perf_counter()
    full = perplexity(model, windows)
    rows = [{"mixer": "full attention", "perplexity": full.perplexity, "ratio": 1.0}]
    rows[0]["seconds"] = time.perf_counter() - start
    for name, config in CONFIGS.items():
        small = remixer.remix(model, config, padded_batch(2, 64, 1000))
        start = time.perf_counter()
        mixed = perplexity(small, windows, teacher=full)
        rows.append(
            {
                "mixer": name,
                "perplexity": mixed.perplexity,
                "ratio": mixed.ratio,
                "error": mixed.error or 0.0,
                "seconds": time.perf_counter() - start,
            }
        )
    table = Table(title=f"SmolLM2-135M, {options.windows} windows of {options.length} tokens, no training")
    for name in ("mixer", "perplexity", "ratio", "standard error of log ratio"):
        table.add_column(name, justify="left" if name == "mixer" else "right")
    for row in rows:
        error = f"{row['error']:.3f}" if "error" in row else ""
        table.add_row(row["mixer"], f"{row['perplexity']:.2f}", f"{row['ratio']:.3f}", error)
    Console(width=120).print(table)
    result = {"command": " ".join(["python", *sys.argv]), "machine": describe(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
