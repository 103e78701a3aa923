"""Tables of what is exact, what is lost, what is won back, and what is learned."""

from __future__ import annotations

import math

from result_files import load, source, table


def exactness() -> list[str]:
    """Rewrites that must change nothing."""
    result = load("exactness")
    worst = max(row["error"] for row in result["rows"])
    return [
        "\nRewrites that must change nothing (`softmax`; `long_short` with a window over the whole text) reproduce "
        "MiniLM and SmolLM2, sdpa and eager, padded, at lengths from 1 to 333, "
        f"to {worst:.1e} of the largest output.\n",
        source(result, "exactness"),
    ]


def perplexity() -> list[str]:
    """A decoder without training."""
    result = load("perplexity")
    return [
        "\nSmolLM2-135M on Python's standard library, 1,024 tokens, all 30 attentions replaced, no training:\n\n",
        table(
            ["mixer", "perplexity", "ratio"],
            [[f"`{row['mixer']}`", f"{row['perplexity']:.2f}", f"{row['ratio']:.3f}"] for row in result["rows"]],
        ),
        source(result, "perplexity"),
    ]


def transfer_decoder() -> list[str]:
    """What transfer wins back of a decoder."""
    result = load("transfer_decoder")
    texts = ("1,024", "2,048", "4,096", "manual")
    rows = []
    for name, row in result["rows"].items():
        ratios = [f"{row['ratios'][text]['ratio']:.3f} ± {row['ratios'][text]['error']:.3f}" for text in texts]
        far = row["needle"]
        steps = " + ".join(str(stage["steps"]) for stage in row["stages"])
        needle = f"{far['rewritten']['top1']:.2f} of {far['original']['top1']:.2f}"
        step = f"{row['overhead']:.2f}"
        rows.append([name, steps, step, f"{row['before']:.3f}", *ratios, f"{row['agreement']['top1']:.3f}", needle])
    lengths = (f"{text} tokens" if text != "manual" else "the manual" for text in texts)
    head = ["", "steps", "a step", "before", *lengths]
    kept = ", ".join(f"{len(row['kept'])} sites" for row in result["rows"].values() if "kept" in row)
    return [
        "\nThe same model with `LongShort(window=128, sinks=4, segment=3, memory=342, maps=True)`, which reaches back "
        "about 1,150 tokens, after `remixer.transfer` on other modules at 1,024 tokens: perplexity by that of full "
        "attention on the same held-out windows (± standard error of its logarithm), how often the most probable next "
        "token is the same, and how many tokens of a secret 300 to 400 back are found. "
        f"The plan keeps {kept}; with retrieval it is `LongShort(window=128, sinks=4, maps=True, retrieve=8)`. "
        "A step is one of attention transfer, in forward passes of the original:\n\n",
        table([*head, "same next token", "needle, top-1"], rows),
        source(result, "transfer_decoder"),
    ]


def document_retrieval() -> list[str]:
    """Long documents found by their docstrings."""
    result = load("document_retrieval")
    rows = []
    for row in result["rows"]:
        found = [f"{row[key]:.3f}" for key in ("top1", "top10", "mrr")]
        rows.append([row["way"], *found, f"{row['tokens']:,}", f"{row['seconds']:.0f}"])
    return [
        f"\nWhich module is this the docstring of? {result['queries']} docstrings, {result['documents']} modules of "
        "Python's standard library without theirs, embedded by MiniLM; `long_short` without training, extended by "
        "`max_length`: how often the right module is the nearest and among the ten nearest, the mean reciprocal rank, "
        "and the seconds that all modules take:\n\n",
        table(["", "top-1", "top-10", "MRR", "tokens", "seconds"], rows),
        source(result, "document_retrieval"),
    ]


def needle() -> list[str]:
    """A secret far back."""
    result = load("needle")
    rows = [
        [
            row["mixer"] if row["mixer"].startswith("full") else f"`{row['mixer']}`",
            f"{row['rest']:.2f}",
            f"{row['top1']:.2f}",
        ]
        for row in result["rows"]
    ]
    return [
        "\nEight random tokens planted 300 to 400 tokens back in real text and asked for again, SmolLM2-135M, no "
        "training: log-probability of all but the first, and how often each is the most probable one:\n\n",
        table(["mixer", "log-probability", "top-1"], rows),
        source(result, "needle"),
    ]


def transfer_encoder() -> list[str]:
    """What transfer wins back of an encoder."""
    result = load("transfer_encoder")
    rows = [
        [
            name,
            str(row["batch"]),
            " + ".join(str(stage["steps"]) for stage in row["stages"]),
            *(f"{row[when][what]:.3f}" for what in ("cosine", "overlap") for when in ("before", "after")),
        ]
        for name, row in result["rows"].items()
    ]
    return [
        f"\nMiniLM's embeddings of {result['texts']['held out']} held-out docstrings after transfer, adapters of rank "
        "16: cosine to the original's, and how many of the ten nearest are the same. Nothing was chosen by these "
        "texts, which are of other files than what was learned from, and than what options were chosen by:\n\n",
        table(["", "texts a step", "steps", "cosine before", "after", "overlap@10 before", "after"], rows),
        source(result, "transfer_encoder"),
    ]


def extrapolation() -> list[str]:
    """Texts longer than those that were trained on."""
    result = load("extrapolation")
    budget, lengths = result["budget"], sorted({row["length"] for row in result["rows"]})
    rows = []
    for training in result["trainings"]:
        found = {row["length"]: row for row in result["rows"] if row["model"] == training["model"]}
        cells = [f"{found[length]['bits_per_byte']:.2f}" for length in lengths]
        rows.append([training["model"], f"{training['parameters']:,}", *cells, f"{found[lengths[-1]]['ratio']:.3f}"])
    return [
        f"\n`ToeplitzBlock`s trained from scratch on {budget['length']} bytes read longer texts as well. Bits per byte "
        f"of held-out sources in blocks of so many bytes, after {budget['steps']} steps of {budget['batch']} sequences "
        "([plot](benchmarks/results/extrapolation.png)). The Transformer has had the same steps, which for it is "
        f"early in training; training reaches only the first {budget['length']} of its learned positions:\n\n",
        table(["model", "parameters", *(f"{length:,}" for length in lengths), "last to first"], rows),
        source(result, "extrapolation"),
    ]


def long_range() -> list[str]:
    """Mixers trained from scratch."""
    result = load("long_range")
    head, rows = ["task", "tokens", "budget", "chance"], []
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        mine = {row["mixer"]: row for row in result["rows"] if row["task"] == task}
        first = next(iter(mine.values()))
        budget = f"{first['setting']['steps']} steps of {first['setting']['rows']}"
        cells = [f"{row['accuracy']:.1%} ({row['steps_per_cpu_second']:.1f})" for row in mine.values()]
        rows.append([task, f"up to {first['length']:,}", budget, f"{first['chance']:.1%}", *cells])
        names = [f"`{name}`" for name in mine]
    error = max(math.sqrt(row["accuracy"] * (1.0 - row["accuracy"]) / row["tests"]) for row in result["rows"])
    return [
        "\nThe same budget from scratch, in the style of the Long Range Arena: accuracy (standard error at most "
        f"{error:.1%}, one seed), and training steps per CPU second. So short a training tells which mixer learns "
        "anything, not what it reaches in the end ([plot](benchmarks/results/long_range.png)):\n\n",
        table([*head, *names], rows),
        source(result, "long_range"),
    ]
