"""Tables of what leaves the process: ONNX files, and attention over several processes."""

from __future__ import annotations

from collections.abc import Callable

from result_files import Row, by_length, load, source, table

NAMED = {"transformers": "the original, by transformers' exporter"}


def onnx_encoder() -> list[str]:
    """MiniLM in onnxruntime."""
    result = load("onnx_encoder")

    def told(row: Row) -> str:
        memory = "" if row["bytes"] is None else f", {row['bytes'] / 2**20:,.0f} MiB"
        return f"{row['seconds'] * 1e3:,.0f} ms{memory}"

    lengths, rows = _graphs(result["rows"], "length", told)
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

    def told(row: Row) -> str:
        return f"{row['tokens_per_second']:.1f} tokens/s, {row['bytes'] / 2**20:,.0f} MiB"

    contexts, rows = _graphs(result["rows"], "context", told)
    return [
        "\nThe real SmolLM2-135M in onnxruntime on the CPU, one token behind a context: the decoding graph that "
        "transformers' own exporter writes and fuses, and what `remixer.export.to_onnx_decoder` writes: times faster, "
        "tokens per second, memory to load it and take a step "
        "([plot](benchmarks/results/onnx_decoder.png)):\n\n",
        table(["graph", *(f"{context:,} tokens before" for context in contexts)], rows),
        source(result, "onnx_decoder"),
    ]


def onnx_export() -> list[str]:
    """SmolLM2 on its way to ONNX."""
    result = load("onnx_export")
    kinds = {"model": "one file", "decoder": "the graphs of a decoder"}
    cells: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        memory = f"{row['bytes'] / 2**20:,.0f} MiB, {row['bytes'] / row['weights']:.2f} times its weights"
        cells.setdefault(row["graph"], {})[row["what"]] = f"{row['seconds']:.0f} s, {memory}"
    rows = [[NAMED.get(name, f"`{name}`"), *(found[what] for what in kinds)] for name, found in cells.items()]
    return [
        "\nExporting SmolLM2-135M in ONNX: seconds, and by how much the process grows at most beyond the model; what "
        "remixer writes has run beside torch by then:\n\n",
        table(["graph", *kinds.values()], rows),
        source(result, "onnx_export"),
    ]


def _graphs(rows: list[Row], along: str, told: Callable[[Row], str]) -> tuple[list[int], list[list[str]]]:
    """The lengths or contexts that were measured, and a line for each graph, "-" where there is nothing."""
    places = list(dict.fromkeys(row[along] for row in rows))
    cells: dict[str, dict[int, str]] = {}
    for row in rows:
        ratio = "" if row["ratio"] is None or row["graph"] == "transformers" else f"{row['ratio']:.2f}x, "
        cells.setdefault(row["graph"], {})[row[along]] = ratio + told(row)
    return places, [
        [NAMED.get(name, f"`{name}`"), *(found.get(each, "-") for each in places)] for name, found in cells.items()
    ]


def distributed() -> list[str]:
    """Attention in one process, and partitioned."""
    result = load("distributed")
    lengths = sorted({row["length"] for row in result["rows"]})
    rows = []
    for how, direction, found in by_length(result["rows"], "how"):
        cells = []
        for length in lengths:
            row = found.get(length)
            faster = "" if row is None or "to_fused" not in row else f" ({row['to_fused']:.2f}x)"
            cells.append("-" if row is None else f"{row['seconds']:.3g} s{faster}")
        rows.append([how, direction, *cells])
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
