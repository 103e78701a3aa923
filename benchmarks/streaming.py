"""How rewritten decoders go on token by token: are the tokens right, what is kept, how long does one take?

- greedy: SmolLM2 with "softmax" everywhere beside transformers' own `generate`, token by token the same?
- portions: logits from a state, for prompts of several lengths, beside those of the whole text at once.
- state: what a state holds after many tokens beside the keys and values that it stands for.
- time: seconds a token at several contexts; keys and values of these are random.
- million: a small decoder is given so many tokens, 64 at a time, in a process of its own. Does its memory grow?

Run: python benchmarks/streaming.py [--only greedy portions state time million] [--threads 2]. Parts that are not run
stay in the file as they were.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from alone import alone
from machine import describe
from pretrained import smollm2, standard_library_windows
from rich.console import Console
from rich.table import Table
from small_decoders import MIXERS, cache_of, filled, held_bytes, kept_of, rewritten, seconds_a_token

import remixer
from remixer import Decoder, generate
from remixer.mixers import mixer_of

Row = dict[str, Any]
PORTION = 64
PARTS = ("greedy", "portions", "state", "time", "million")


def greedy(options: argparse.Namespace) -> list[Row]:
    """How many prompts go on as by transformers, and the seconds of both."""
    model, tokenizer = smollm2()
    ids = standard_library_windows(tokenizer, options.prompts, 64)
    mask = torch.ones_like(ids)
    for row in range(options.prompts):  # of 24 to 64 tokens, padded on the left
        mask[row, : row * 40 // options.prompts] = 0
    decoder = Decoder(rewritten(model, MIXERS["softmax"]), 64 + options.new)
    rows = []
    for batch in (1, 4):
        row: Row = {"batch": batch, "prompts": options.prompts, "tokens": options.new, "equal": 0}
        seconds = {"seconds": 0.0, "transformers_seconds": 0.0}
        for start in range(0, options.prompts, batch):
            some, there = ids[start : start + batch], mask[start : start + batch]
            if batch == 1:
                some, there = some[:, there[0].bool()], there[:, there[0].bool()]
            begun = time.perf_counter()
            written = generate(decoder, some, options.new, there)
            between = time.perf_counter()
            given = {"max_new_tokens": options.new, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
            wanted = model.generate(input_ids=some, attention_mask=there, **given)
            seconds["transformers_seconds"] += time.perf_counter() - between
            seconds["seconds"] += between - begun
            row["equal"] += int((written == wanted).all(1).sum())
        rows.append({**row, **seconds})
    return rows


def portions(options: argparse.Namespace) -> list[Row]:
    """Streamed logits after prompts of several lengths: how far from the whole's, relative to the largest of these."""
    model, tokenizer = smollm2()
    tokens = options.tokens
    ids = standard_library_windows(tokenizer, 1, tokens)
    mask, places = torch.ones_like(ids), torch.arange(tokens)[None]
    rows = []
    for name in ("long_short", "toeplitz"):
        small = rewritten(model, MIXERS[name])
        with torch.no_grad():
            whole = small(input_ids=ids, attention_mask=mask, position_ids=places).logits[0]
        decoder = Decoder(small, tokens)
        for prompt in sorted({1, max(1, tokens // 20), tokens // 2, tokens - 1}):
            logits, state = decoder.prefill(ids[:, :prompt])
            error, agreed = _difference(logits[0], whole[prompt - 1 : prompt])
            for start in range(prompt, tokens, PORTION):
                logits, state = decoder.step(ids[:, start : start + PORTION], state)
                more, also = _difference(logits[0], whole[start : start + PORTION])
                error, agreed = max(error, more), agreed + also
            row = {"mixer": name, "tokens": tokens, "prompt": prompt, "error": error / float(whole.abs().max())}
            rows.append({**row, "same_argmax": agreed / (tokens - prompt + 1)})
    return rows


def _difference(logits: torch.Tensor, whole: torch.Tensor) -> tuple[float, int]:
    return float((logits - whole).abs().max()), int((logits.argmax(-1) == whole.argmax(-1)).sum())


def state(options: argparse.Namespace) -> list[Row]:
    """Bytes of all sites' states after many tokens."""
    model, _ = smollm2()
    sites = [site.spec for site in remixer.explain(model, _example(model)).sites]
    rows = []
    for name, mixer in MIXERS.items():
        for tokens in (options.state_tokens // 100, options.state_tokens):
            made = mixer_of(mixer).from_attention(sites[0], mixer).eval()
            kept = held_bytes(kept_of(made, tokens, options.state_tokens))
            rows.append({"mixer": name, "tokens": tokens, "bytes": kept * len(sites)})
    return rows


def _example(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.ones(2, 16, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def times(options: argparse.Namespace) -> list[Row]:
    """Seconds a token of each mixer, and of transformers, at each context."""
    model, _ = smollm2()
    contexts = options.contexts
    one = torch.ones(1, 1, dtype=torch.int64)
    rows = []
    for name, mixer in MIXERS.items():
        decoder = Decoder(rewritten(model, mixer), max(contexts) + 8 * options.rounds)
        for context in contexts:
            held = {"state": filled(decoder, context)}
            cache = cache_of(model, context)

            def ours(held: dict[str, Any] = held, decoder: Decoder = decoder) -> None:
                _, held["state"] = decoder.step(one, held["state"])

            def theirs(cache: Any = cache) -> None:
                with torch.no_grad():
                    model(input_ids=one, past_key_values=cache, use_cache=True)
                cache.crop(-1)

            calls = [("seconds", ours), *([("transformers_seconds", theirs)] if name == "softmax" else [])]
            found = seconds_a_token(calls, options.rounds)
            rows.append({"mixer": name, "context": context, **found})
    return rows


def million(options: argparse.Namespace) -> list[Row]:
    """Memory and pace of a small decoder, in processes of their own side by side, a thread each."""

    def run(name: str) -> list[Row]:
        return alone(__file__, "--one", name, "--many", options.many, "--threads", 1)

    with ThreadPoolExecutor() as pool:
        return [row for rows in pool.map(run, ("long_short", 'long_short(memory="dyadic")')) for row in rows]


def one_million(name: str, many: int) -> list[Row]:
    """Random tokens through one layer, 64 at a time; bytes of the state and of the process after each tenth."""
    import psutil
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    options = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **options)).eval()
    decoder, process = Decoder(rewritten(model, MIXERS[name]), many), psutil.Process()
    ids = torch.randint(1, 256, (1, many))
    _, kept = decoder.prefill(ids[:, :1])
    rows: list[Row] = []
    begun, told = time.perf_counter(), 1
    for start in range(1, many, PORTION):
        some = ids[:, start : start + PORTION]
        logits, kept = decoder.step(some, kept)
        done = start + some.shape[1]
        if done * 10 // many > len(rows):
            assert logits.isfinite().all()
            took = (time.perf_counter() - begun) / (done - told)
            sizes = {"state_bytes": held_bytes(kept), "process_bytes": process.memory_info().rss}
            rows.append({"mixer": name, "tokens": done, **sizes, "seconds": took})
            begun, told = time.perf_counter(), done
    return rows


RUN = {"greedy": greedy, "portions": portions, "state": state, "time": times, "million": million}


def shown(part: str, rows: list[Row]) -> Table:
    """A part's rows as a table."""
    table = Table(*rows[0], title=part)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell
                        for cell in row.values()))  # fmt: skip
    return table


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new", type=int, default=200, help="tokens that are written for each prompt")
    parser.add_argument("--tokens", type=int, default=2000, help="of the text that goes in portions")
    parser.add_argument("--state-tokens", type=int, default=100_000)
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 32768])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "streaming.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(one_million(options.one, options.many)))
        return
    console = Console(width=120)
    result: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    command = " ".join(["python", "benchmarks/streaming.py", *sys.argv[1:]])
    for part in options.only:
        with console.status(part):
            rows = RUN[part](options)
        console.print(shown(part, rows))
        result[part] = {"command": command, "machine": describe(), "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
