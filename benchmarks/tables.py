"""The tables of docs/results.md and the README, made from the files in benchmarks/results.

Run: python benchmarks/tables.py, after any benchmark.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE.parent / "docs" / "results.md"
BEGIN, END = "<!-- results -->\n", "<!-- /results -->"
# Each table is a function here, and a file of its name in results.
SECTIONS = {
    "Exactness": ("exactness",),
    "What is lost, and won back": ("perplexity", "transfer_decoder", "needle", "transfer_encoder"),
    "Speed and memory": ("mixers", "mixers_long", "others", "scaling", "million"),
    "ONNX": ("onnx_encoder", "onnx_decoder"),
    "Several processes": ("distributed", "distributed_volumes"),
    "Time of a rewrite": ("compile_time",),
    "From scratch": ("extrapolation", "long_range"),
}
SHOWN = ("exactness", "perplexity", "transfer_decoder", "transfer_encoder", "mixers_long", "million", "onnx_encoder")


def load(name: str) -> dict[str, Any]:
    """One result."""
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def measured(name: str) -> bool:
    """Whether there is a result: the longest benchmarks may not have been run yet."""
    return (HERE / "results" / f"{name}.json").exists()


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def source(result: dict[str, Any], name: str) -> str:
    """Where figures come from."""
    machine = result["machine"]
    return (
        f"\n`{result['command']}` on {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}: [`{name}.json`](benchmarks/results/{name}.json).\n"
    )


def page() -> str:
    """All tables, as they stand in docs/results.md."""
    parts = []
    for title, tables in SECTIONS.items():
        found = [part for name in tables if measured(name) for part in globals()[name]()]
        parts += [f"\n## {title}\n", *found]
    return "".join(parts).replace("](benchmarks/", "](../benchmarks/")


def headlines() -> str:
    """Those that stand in the README."""
    return "".join(part for name in SHOWN if measured(name) for part in globals()[name]()).lstrip("\n")


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


def compile_time() -> list[str]:
    """How long a rewrite takes."""
    result = load("compile_time")
    row = result["rows"][0]
    return [
        f"\n`remix` of SmolLM2, all 30 sites, takes {row['ratio']:.2f} times the `torch.export.export` call inside it "
        f"({row['remix']:.1f} s against {row['export']:.1f} s).\n",
        source(result, "compile_time"),
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
        rows.append([name, steps, f"{row['before']:.3f}", *ratios, f"{row['agreement']['top1']:.3f}", needle])
    head = ["", "steps", "before", *(f"{text} tokens" if text != "manual" else "the manual" for text in texts)]
    overheads = [row["overhead"] for row in result["rows"].values()]
    return [
        "\nThe same model with `LongShort(window=128, sinks=4, maps=True)`, which reaches back about 1,150 tokens, "
        "after `remixer.transfer` on other modules at 1,024 tokens: perplexity by that of full attention on the same "
        "held-out windows (± standard error of its logarithm), how often the most probable next token is the same, "
        "and how many tokens of a secret 300 to 400 back are found. Retrieval is `retrieve=4, retrieve_block=4`, "
        f"without maps. A step of attention transfer takes up to {max(overheads):.2f} forward passes of the "
        "original:\n\n",
        table([*head, "same next token", "needle, top-1"], rows),
        source(result, "transfer_decoder"),
    ]


def transfer_encoder() -> list[str]:
    """What transfer wins back of an encoder."""
    result = load("transfer_encoder")
    rows = [
        [
            name,
            " + ".join(str(stage["steps"]) for stage in row["stages"]),
            *(f"{row[when][what]:.3f}" for what in ("cosine", "overlap") for when in ("before", "after")),
        ]
        for name, row in result["rows"].items()
    ]
    return [
        f"\nMiniLM's embeddings of {result['texts']['held out']} held-out docstrings after transfer: cosine to the "
        "original's, and how many of the ten nearest are the same:\n\n",
        table(["", "steps", "cosine before", "after", "overlap@10 before", "after"], rows),
        source(result, "transfer_encoder"),
    ]


def mixers() -> list[str]:
    """Mixers against fused attention and a compiled sliding window."""
    result = load("mixers")
    parts = [
        "\nOne mixer beside `F.scaled_dot_product_attention` and beside a compiled FlexAttention with a sliding window "
        "(128 to each side), in the same run, batch 1, width 384, 12 heads, `LongShort(window=128, rank=32, sinks=0)` "
        "(causal: rank 1) and `Toeplitz()`: times faster than attention, and milliseconds "
        "([plot](benchmarks/results/mixers.png)):\n"
    ]
    for kind in dict.fromkeys(row["pass"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["pass"] == kind]
        lengths = sorted({row["length"] for row in mine})
        rows = []
        for causal in (False, True):
            for name in dict.fromkeys(row["mixer"] for row in mine if row["mixer"] != "attention"):
                found = {row["length"]: row for row in mine if (row["mixer"], row["causal"]) == (name, causal)}
                cells = [f"{found[each]['ratio']:.1f}x ({found[each]['seconds'] * 1e3:.1f})" for each in lengths]
                label = "FlexAttention, window" if name == "window" else f"`{name}`"
                rows.append([label, "causal" if causal else "bidirectional", *cells])
        head = [kind, "direction", *(f"{length:,} tokens" for length in lengths)]
        parts += ["\n", table(head, rows)]
    return [*parts, source(result, "mixers")]


def mixers_long() -> list[str]:
    """Memory beside time, to longer sequences."""
    result = load("mixers_long")
    lengths = sorted({row["length"] for row in result["rows"]})
    rows = []
    for causal in (False, True):
        for name in dict.fromkeys(row["mixer"] for row in result["rows"]):
            found = {row["length"]: row for row in result["rows"] if (row["mixer"], row["causal"]) == (name, causal)}
            cells = [f"{found[each]['ratio']:.1f}x, {found[each]['peak_bytes'] / 2**20:,.0f} MiB" for each in lengths]
            label = {"attention": "fused attention", "window": "FlexAttention, window"}.get(name, f"`{name}`")
            rows.append([label, "causal" if causal else "bidirectional", *cells])
    return [
        "\nOne mixer, forward, batch 1, width 384, 12 heads: times faster than `F.scaled_dot_product_attention` in the "
        "same run, and the most memory a pass takes:\n\n",
        table(["mixer", "direction", *(f"{length:,} tokens" for length in lengths)], rows),
        source(result, "mixers_long"),
    ]


def distributed() -> list[str]:
    """Attention in one process, and partitioned."""
    result = load("distributed")
    lengths = sorted({row["length"] for row in result["rows"]})
    rows = []
    for causal in (False, True):
        for how in dict.fromkeys(row["how"] for row in result["rows"]):
            found = {row["length"]: row for row in result["rows"] if (row["how"], row["causal"]) == (how, causal)}
            cells = []
            for length in lengths:
                row = found.get(length)
                faster = "" if row is None or "to_fused" not in row else f" ({row['to_fused']:.2f}x)"
                cells.append("-" if row is None else f"{row['seconds']:.3g} s{faster}")
            rows.append([how, "causal" if causal else "bidirectional", *cells])
    longest = ", ".join(f"{how} {tokens:,}" for how, tokens in result["longest"].items())
    return [
        f"\nOne attention, 12 heads of 32: all scores written out in one process, fused in one process, and over "
        f"{result['ranks']} processes that share the same cores: seconds (times the speed of the fused one; "
        "[plot](benchmarks/results/distributed.png)):\n\n",
        table(["attention", "direction", *(f"{length:,} tokens" for length in lengths)], rows),
        f"\nThe longest sequence of it in 6 GiB per process, extrapolated from what was measured: {longest}.\n",
        source(result, "distributed"),
    ]


def distributed_volumes() -> list[str]:
    """Which scheme wins where, past this machine."""
    result = load("distributed_volumes")
    machines = list(result["machines"])
    rows = []
    for model, ranks, tokens in dict.fromkeys((row["model"], row["ranks"], row["tokens"]) for row in result["rows"]):
        mine = [row for row in result["rows"] if (row["model"], row["ranks"], row["tokens"]) == (model, ranks, tokens)]
        cells = []
        for machine in machines:
            best = [row for row in mine if machine in row.get("wins", ())]
            told = [f"`{row['scheme']}`, {row[machine]:,.{0 if row[machine] > 10 else 3}f} s" for row in best]
            cells += told or ["nothing fits"]
        sent = ", ".join(f"{row['scheme']} {row['sent'] / 2**30:,.4g}" for row in mine if "sent" in row)
        rows.append([model, f"{ranks:,}", f"2^{tokens.bit_length() - 1}", sent, *cells])
    told = "; ".join(
        f"{name}: {each['flops'] / 1e12:.0f} TFLOP/s, {each['bandwidth'] / 1e9:.0f} GB/s, "
        f"{each['memory'] / 2**30:.0f} GiB"
        for name, each in result["machines"].items()
    )
    return [
        "\nBeyond that, simulated with torch's fake process group: GiB that each process sends for one attention, "
        f"counted and equal to the formulas to the byte, and which scheme should be fastest there ({told}; "
        "[plot](benchmarks/results/distributed_volumes.png)):\n\n",
        table(["attention", "processes", "tokens", "GiB sent", *machines], rows),
        source(result, "distributed_volumes"),
    ]


def others() -> list[str]:
    """Mixers against other implementations of the same."""
    result = load("others")
    lengths = sorted({row["length"] for row in result["rows"]})
    rows = []
    for ours, theirs in dict.fromkeys((row["ours"], row["theirs"]) for row in result["rows"]):
        for backward in (False, True):
            mine = {
                row["length"]: row
                for row in result["rows"]
                if (row["ours"], row["theirs"], row["backward"]) == (ours, theirs, backward)
            }
            cells = [f"{mine[each]['times_faster']:.1f}x ({_times(mine[each]['times_smaller'])})" for each in lengths]
            rows.append([f"`{ours}`", theirs, "forward, backward" if backward else "forward", *cells])
    return [
        "\nAgainst other implementations of the same: times faster (times less memory). The straightforward forms give "
        "the same numbers; `long-short-transformer` from PyPI is compared as a layer, projections included:\n\n",
        table(["mixer", "other", "pass", *(f"{length:,} tokens" for length in lengths)], rows),
        source(result, "others"),
    ]


def _times(smaller: float) -> str:
    """Some passes take no more memory than what a process has already."""
    return f"{smaller:.1f}x" if smaller > 0.05 else "-"


def scaling() -> list[str]:
    """Growth to a million tokens, and the longest sequence in a given memory."""
    result = load("scaling")
    rows = []
    for name in dict.fromkeys(row["mixer"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["mixer"] == name]
        worst = max(row["seconds_ratio"] for row in mine if "seconds_ratio" in row)
        cells = [f"{mine[0]['seconds'] * 1e3:.1f} ms", f"{mine[-1]['seconds']:.2f} s", f"{worst:.2f}"]
        rows.append([f"`{name}`", *cells, str(mine[0]["target"])])
    first, last = (result["rows"][index]["length"] for index in (0, -1))
    longest = ", ".join(f"{row['mixer']} {row['length']:,}" for row in result["longest"])
    return [
        f"\nForward passes from {first:,} to {last:,} tokens ([plot](benchmarks/results/scaling.png)); at most so many "
        "times the seconds for twice the tokens:\n\n",
        table(["mixer", f"{first:,}", f"{last:,}", "at most", "goal"], rows),
        f"\nThe longest sequence trained on within {result['budget_gib']:g} GiB: {longest}.\n",
        source(result, "scaling"),
    ]


def million() -> list[str]:
    """A million tokens."""
    result = load("million")
    rows = [
        [
            f"`{row['mixer']}`",
            f"{row['seconds']:.0f} s",
            f"{row['seconds'] / row['floor']:.2f}",
            f"{row['bytes'] / 2**30:.1f} GiB",
        ]
        for row in result["rows"]
    ]
    return [
        f"\nThe real MiniLM, all six attentions replaced, {result['rows'][0]['tokens']:,} tokens in one forward pass "
        f"([plot](benchmarks/results/million.png)). The original's attentions alone would take "
        f"{result['original_seconds'] / 3600:.1f} hours, extrapolated:\n\n",
        table(["mixer", "seconds", "times the floor", "memory"], rows),
        source(result, "million"),
    ]


def onnx_encoder() -> list[str]:
    """MiniLM in onnxruntime."""
    result = load("onnx_encoder")
    lengths = list(dict.fromkeys(row["length"] for row in result["rows"]))
    cells: dict[str, dict[int, str]] = {}
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None or row["graph"] == "transformers" else f"{row['ratio']:.2f}x, "
        memory = "" if row["bytes"] is None else f", {row['bytes'] / 2**20:,.0f} MiB"
        text = f"{ratio}{row['seconds'] * 1e3:,.0f} ms{memory}"
        cells.setdefault(row["graph"], {})[row["length"]] = text
    rows = [
        [
            "the original, by transformers' exporter" if name == "transformers" else f"`{name}`",
            *(found.get(length, "-") for length in lengths),
        ]
        for name, found in cells.items()
    ]
    return [
        "\nThe real MiniLM in onnxruntime on the CPU, one text: the original as transformers' own exporter writes and "
        "fuses it, and what `remixer.export.to_onnx` writes: times faster, milliseconds "
        "([plot](benchmarks/results/onnx_encoder.png)):\n\n",
        table(["graph", *(f"{length:,} tokens" for length in lengths)], rows),
        source(result, "onnx_encoder"),
    ]


def onnx_decoder() -> list[str]:
    """SmolLM2 in onnxruntime, one token."""
    result = load("onnx_decoder")
    contexts = list(dict.fromkeys(row["context"] for row in result["rows"]))
    cells: dict[str, dict[int, str]] = {}
    for row in result["rows"]:
        ratio = "" if row["graph"] == "transformers" else f"{row['ratio']:.2f}x, "
        text = f"{ratio}{row['tokens_per_second']:.1f} tokens/s, {row['bytes'] / 2**20:,.0f} MiB"
        cells.setdefault(row["graph"], {})[row["context"]] = text
    rows = [
        [
            "the original, by transformers' exporter" if name == "transformers" else f"`{name}`",
            *(found[context] for context in contexts),
        ]
        for name, found in cells.items()
    ]
    return [
        "\nThe real SmolLM2-135M in onnxruntime on the CPU, one token behind a context: the decoding graph that "
        "transformers' own exporter writes and fuses, and what `remixer.export.to_onnx_decoder` writes: times faster, "
        "tokens per second, memory to load it and take a step "
        "([plot](benchmarks/results/onnx_decoder.png)):\n\n",
        table(["graph", *(f"{context:,} tokens before" for context in contexts)], rows),
        source(result, "onnx_decoder"),
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


def between(path: Path) -> str:
    """What stands between the marks in a file."""
    return path.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    """Write the tables into the README and the page of results."""
    for path, found in ((README, headlines()), (RESULTS, page())):
        before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        path.write_text(before + BEGIN + found + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
