"""What transfer wins back of SmolLM2-135M, all or most of its attentions linear.

Held-out modules of Python's standard library at 1,024 tokens, where it learned, at 2,048 and 4,096, where it did not;
and the language's manual. What counts is the paired ratio of the perplexity to full attention's on the same windows.

Run: python benchmarks/transfer_decoder.py [--minutes 10] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe
from needle import CUE
from pretrained import padded_batch, smollm2
from rich.console import Console
from rich.table import Table
from texts import as_inputs, prose, windows
from torch import Tensor

import remixer
from remixer import LongShort, Remixed
from remixer.evaluation import agreement, needle, perplexity

# Window and summaries of 3 tokens each over 1,154 tokens; and those of 8 with far segments attended to word for word.
FINER = LongShort(window=128, sinks=4, segment=3, memory=342, maps=True)
RETRIEVAL = LongShort(window=128, sinks=4, maps=True, retrieve=8)
EVERYWHERE, KEPT = "long_short on all sites", "long_short where a plan keeps up to 8 sites"
VARIANTS = {EVERYWHERE: FINER, KEPT: FINER, "long_short with retrieval on all sites": RETRIEVAL}


def made(name: str, model: Any, data: list[dict[str, Tensor]], minutes: float, validation: Any) -> tuple[Remixed, Any]:
    """One variant, transferred, and how that went."""
    example = padded_batch(2, 64, 1000)
    mixer: Any = VARIANTS[name]
    told: dict[str, Any] = {}
    if name == KEPT:
        start = time.perf_counter()
        plan = remixer.plan(
            model,
            example,
            data,
            mixers=[FINER],
            budget=8.5 / 30,
            length=10**6,
            transfer_steps=24,
            batches=3,
            rounds=1,
        )
        told = {
            "plan_seconds": time.perf_counter() - start,
            "kept": [s.name for s in plan.sites if s.configs == (None,)],
        }
        mixer = plan
    small = remixer.remix(model, mixer, example)
    told["before"] = perplexity(small, validation["windows"], teacher=validation["full"]).ratio
    report = remixer.transfer(small, data, minutes=minutes)
    told["stages"] = [{"name": stage.name, "steps": stage.steps, "seconds": stage.seconds} for stage in report.stages]
    return small, told


def overhead(model: Any, small: Remixed, call: dict[str, Tensor]) -> float:
    """What a step of attention transfer takes, in forward passes of the original; the better of three each."""
    from remixer.distillation.attention_stage import AttentionStage
    from remixer.passes.sites import sites_of

    assert small.original is not None
    stage = AttentionStage(small.original, {site.name: site.mixer for site in sites_of(remixer.Program.of(small))})
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            model(**call)
        between = time.perf_counter()
        stage.learn(((), call))
        taken[0].append(between - start)
        taken[1].append(time.perf_counter() - between)
    stage.close()
    return min(taken[1]) / min(taken[0])


def measured(
    small: Remixed, texts: dict[str, Tensor], full: dict[str, Any], model: Any, cue: list[int]
) -> dict[str, Any]:
    """All figures of one variant."""
    ratios = {}
    for name, ids in texts.items():
        found = perplexity(small, as_inputs(ids), teacher=full[name])
        ratios[name] = {"perplexity": found.perplexity, "ratio": found.ratio, "error": found.error, "windows": len(ids)}
    few = as_inputs(texts["1,024"][:4])
    same = agreement(small, model, few)
    far = {}
    for name, one in (("original", model), ("rewritten", small)):
        (gain,) = needle(one, as_inputs(texts["1,024"][:8, :512]), [(300, 400)], cue=cue, vocabulary=(1000, 40000))
        far[name] = {"gain": gain.gain, "error": gain.error, "top1": gain.planted.top1}
    return {"ratios": ratios, "agreement": {"top1": same.top1, "kl": same.kl}, "needle": far}


def main() -> None:
    """Transfer, measure, print, write the JSON after each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "transfer_decoder.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = smollm2()
    data = as_inputs(windows(tokenizer, options.length, held_out=False, count=256))
    texts = {f"{n:,}": windows(tokenizer, n, held_out=True, count=options.windows) for n in (1024, 2048, 4096)}
    texts["manual"] = prose(tokenizer, 1024, options.windows)
    full = {name: perplexity(model, as_inputs(ids)) for name, ids in texts.items()}
    earlier: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows: dict[str, Any] = earlier.get("rows", {})
    commands = earlier["command"].split("; ") if earlier else []
    mine = shlex.join(["python", "benchmarks/transfer_decoder.py", *sys.argv[1:]])
    cue = tokenizer(CUE)["input_ids"]
    for name in options.only:
        given = {"windows": as_inputs(texts["1,024"]), "full": full["1,024"]}
        small, told = made(name, model, data, options.minutes, given)
        told["overhead"] = overhead(model, small, data[0])
        rows[name] = {**told, **measured(small, texts, full, model, cue)}
        result = {
            "command": "; ".join(dict.fromkeys([*commands, mine])),
            "machine": describe(),
            "full": {key: found.perplexity for key, found in full.items()},
            "rows": rows,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        show(rows)


def show(rows: dict[str, Any]) -> None:
    """A table on the terminal."""
    table = Table(title="SmolLM2-135M after transfer: perplexity by full attention's on held-out text")
    for head in ("variant", "before", "1,024", "2,048", "4,096", "manual", "same next token", "needle top-1"):
        table.add_column(head)
    for name, row in rows.items():
        ratios = [f"{row['ratios'][key]['ratio']:.3f}" for key in ("1,024", "2,048", "4,096", "manual")]
        far = row["needle"]
        needles = f"{far['rewritten']['top1']:.2f} of {far['original']['top1']:.2f}"
        table.add_row(name, f"{row['before']:.3f}", *ratios, f"{row['agreement']['top1']:.3f}", needles)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
