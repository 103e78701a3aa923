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
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from machine import describe
from pretrained import padded_batch, smollm2, standard_library_windows
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import remixer
from remixer import LongShort

CUE = "\n# the secret key is: "
SECRET = 8


def samples_of(tokenizer: Any, count: int, length: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Windows with a secret, the same with another one planted, and the secret that is asked for."""
    cue = torch.tensor(tokenizer(CUE)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    found = []
    for text in standard_library_windows(tokenizer, count, length):
        secret, other = (torch.randint(1000, 40000, (SECRET,), generator=generator) for _ in range(2))
        back = int(torch.randint(300, 400, (1,), generator=generator))
        body = text[: length - 2 * len(cue) - 2 * SECRET]
        at = len(body) + len(cue) + SECRET - back
        both = (torch.cat([body[:at], cue, planted, body[at:], cue, secret]) for planted in (secret, other))
        found.append((*both, secret))
    return found


def recall(model: nn.Module, windows: list[Tensor], secrets: list[Tensor]) -> dict[str, float]:
    """Mean log-probability of the first token of a secret and of the others, and the share of tokens ranked first."""
    first, rest, top = [], [], []
    for window, secret in zip(windows, secrets, strict=True):
        with torch.no_grad():
            ids = window[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -SECRET - 1 : -1]
        found = torch.log_softmax(logits, -1).gather(1, secret[:, None])[:, 0]
        first.append(float(found[0]))
        rest.append(float(found[1:].mean()))
        top.append(float((logits.argmax(-1) == secret).float().mean()))
    return {"first": statistics.fmean(first), "rest": statistics.fmean(rest), "top1": statistics.fmean(top)}


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
    samples = samples_of(tokenizer, options.samples, options.length)
    planted, others, secrets = (list(column) for column in zip(*samples, strict=True))
    window = options.window
    configs = {
        f"long_short(window={window}, rank=0)": LongShort(window=window, rank=0),
        f"long_short(window={window})": LongShort(window=window),
        f"long_short(window={window}, retrieve=8, retrieve_block=4)": LongShort(
            window=window, retrieve=8, retrieve_block=4
        ),
        f"long_short(window={window}, retrieve=8)": LongShort(window=window, retrieve=8),
    }
    rows: list[dict[str, Any]] = [{"mixer": "full attention", **recall(model, planted, secrets)}]
    rows.append({"mixer": "full attention, another secret planted", **recall(model, others, secrets)})
    for name, config in configs.items():
        small = remixer.remix(model, config, padded_batch(2, 64, 1000))
        rows.append({"mixer": name, **recall(small, planted, secrets)})
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
