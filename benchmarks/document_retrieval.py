"""Which module is this the docstring of? MiniLM on whole modules of Python's standard library.

Documents are the 500 longest modules, their docstrings taken out; queries the docstrings of those that have one. The
original reads the first 512 tokens; or all of them in pieces of 512, whose embeddings are averaged; rewritten and
extended, the model reads up to 8,192 at once.

Run: python benchmarks/document_retrieval.py [--minutes 0] [--window 128]
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe
from pretrained import minilm
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from standard_library import modules
from texts import alike, padded, paragraphs
from torch import Tensor, nn

import remixer
from remixer import LongShort

SHORTEST = 60  # characters of a docstring that says something
ORIGINAL, EXTENDED = 512, 8192


def documents(count: int) -> tuple[list[str], dict[int, str]]:
    """The longest modules without their docstrings, and the docstrings by the module's number."""
    sources = {name: text.decode("utf-8", "ignore") for name, text in modules().items()}
    texts, queries = [], {}
    for name in sorted(sources, key=lambda each: (-len(sources[each]), each))[:count]:
        text = sources[name]
        with warnings.catch_warnings(action="ignore"):
            try:
                tree = ast.parse(text)
            except SyntaxError:  # templates, and what 2to3 is tried on
                tree = ast.Module([], [])
        said = ast.get_docstring(tree)
        if said:
            lines, first = text.splitlines(keepends=True), tree.body[0]
            text = "".join(lines[: first.lineno - 1] + lines[first.end_lineno :])
            if len(said) >= SHORTEST:
                queries[len(texts)] = said
        texts.append(text)
    return texts, queries


def embedding(model: nn.Module, ids: Tensor) -> Tensor:
    """(C,) of token ids (T,): the mean state, of length 1."""
    with torch.no_grad():
        states = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).last_hidden_state
    return F.normalize(states[0].mean(0), dim=-1)


def in_pieces(model: nn.Module, ids: Tensor) -> Tensor:
    """(C,) of token ids (T,): the mean over pieces as long as the model takes, weighted by their lengths."""
    inner = ids[1:-1].split(ORIGINAL - 2)
    pieces = [torch.cat([ids[:1], piece, ids[-1:]]) for piece in inner]
    found = torch.stack([len(piece) * embedding(model, piece) for piece in pieces])
    return F.normalize(found.sum(0), dim=-1)


def ranks(queries: Tensor, documents: Tensor, right: list[int]) -> Tensor:
    """How many documents lie as near to each query as the right one: 1 is best."""
    likeness = queries @ documents.T
    return (likeness >= likeness[torch.arange(len(right)), right][:, None]).sum(1)


def main() -> None:
    """Embed in three ways, rank, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=0.0, help="of transfer, on docstrings")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--length", type=int, default=EXTENDED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "document_retrieval.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = minilm()
    texts, said = documents(options.documents)
    example = padded(tokenizer, ["A text.", "Another text, which is longer."], 32, 2)[0]
    config = LongShort(window=options.window)
    small = remixer.remix(model, config, example, max_length=options.length)
    if options.minutes:
        data = padded(tokenizer, alike(paragraphs().learned, 16), 128, 16)
        remixer.transfer(small, data, minutes=options.minutes, loss="mean")

    def encoded(text: str, most: int) -> Tensor:
        ids: Tensor = tokenizer(text, truncation=True, max_length=most, return_tensors="pt")["input_ids"][0]
        return ids

    ways: dict[str, tuple[int, nn.Module, Callable[[nn.Module, Tensor], Tensor]]] = {
        f"the original, the first {ORIGINAL} tokens": (ORIGINAL, model, embedding),
        f"the original, in pieces of {ORIGINAL}": (options.length, model, in_pieces),
        f"long_short(window={options.window}), the first {options.length:,} tokens": (options.length, small, embedding),
    }
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for name, (most, reader, embed) in ways.items():
            ids = [encoded(text, most) for text in texts]
            embed(reader, ids[0])
            start = time.perf_counter()
            found = torch.stack([embed(reader, each) for each in progress.track(ids, description=name)])
            seconds = time.perf_counter() - start
            asked = torch.stack([embedding(reader, encoded(text, ORIGINAL)) for text in said.values()])
            rank = ranks(asked, found, list(said)).float()
            rows.append({
                "way": name,
                "top1": float((rank == 1).float().mean()),
                "top10": float((rank <= 10).float().mean()),
                "mrr": float((1.0 / rank).mean()),
                "seconds": seconds,
                "tokens": sum(map(len, ids)),
            })  # fmt: skip
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/document_retrieval.py", *sys.argv[1:]]),
        "machine": describe(),
        "documents": len(texts),
        "queries": len(said),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    heads = ("way", "top-1", "top-10", "MRR", "tokens", "seconds")
    table = Table(*heads, title=f"{len(said)} docstrings, {len(texts)} modules")
    for row in rows:
        figures = [f"{row[key]:.3f}" for key in ("top1", "top10", "mrr")]
        table.add_row(row["way"], *figures, f"{row['tokens']:,}", f"{row['seconds']:.1f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
