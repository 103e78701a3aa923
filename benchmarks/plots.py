"""Pictures of what the papers claim, made from the files in benchmarks/results.

Run: python benchmarks/plots.py, after any benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from result_files import HERE, load, measured

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def mixers(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Milliseconds of one forward pass over the length, bidirectional and causal."""
    for axes, causal in ((left, False), (right, True)):
        axes.set_title("causal" if causal else "bidirectional")
        rows = [row for row in result["rows"] if (row["pass"], row["causal"]) == ("forward", causal)]
        _lines(axes, rows, lambda row: row["seconds"] * 1e3)
        axes.set_ylabel("milliseconds")


def scaling(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Seconds over the length up to a million tokens, and the longest sequence that a given memory holds."""
    _lines(left, result["rows"], lambda row: row["seconds"])
    left.set_ylabel("seconds")
    _bars(right, {row["mixer"]: row["length"] for row in result["longest"]})
    right.set_xscale("log")
    right.set_xlabel(f"longest sequence trained on in {result['budget_gib']:g} GiB")


def long_range(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Accuracy after the same steps, task by task."""
    for axes, task in zip((left, right), dict.fromkeys(row["task"] for row in result["rows"]), strict=True):
        mine = [row for row in result["rows"] if row["task"] == task]
        _bars(axes, {row["mixer"]: row["accuracy"] for row in mine})
        axes.axvline(mine[0]["chance"], color="grey", linestyle="--", linewidth=1)
        axes.set_title(task)
        axes.set_xlabel("accuracy; dashed: chance")


def million(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Seconds of one pass over a million tokens, beside the floor, and the original's attentions extrapolated."""
    times = {"original attentions, extrapolated": result["original_seconds"]}
    for row in result["rows"]:
        times |= {row["mixer"]: row["seconds"], f"{row['mixer']}, floor": row["floor"]}
    _bars(left, times)
    left.set_xscale("log")
    left.set_xlabel(f"seconds for {result['rows'][0]['tokens']:,} tokens")
    _bars(right, {row["mixer"]: row["bytes"] / 2**30 for row in result["rows"]})
    right.set_xlabel("GiB at most")


def onnx_encoder(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Milliseconds of one run over the length, graph by graph, and times faster than the peer."""
    rows = [{**row, "mixer": row["graph"]} for row in result["rows"]]
    _lines(left, rows, lambda row: row["seconds"] * 1e3)
    left.set_ylabel("milliseconds")
    faster = [row for row in rows if row["ratio"] is not None]
    _lines(right, faster, lambda row: row["ratio"])
    right.set_ylabel("times faster than the peer")


def onnx_decoder(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Tokens per second and memory over the context, graph by graph."""
    rows = [{**row, "mixer": row["graph"], "length": row["context"]} for row in result["rows"]]
    _lines(left, rows, lambda row: row["tokens_per_second"])
    left.set_ylabel("tokens per second")
    _lines(right, rows, lambda row: row["bytes"] / 2**20)
    right.set_ylabel("MiB at most")


def distributed(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """Seconds of one attention over the length, in one process and over several, in both directions."""
    for axes, causal in ((left, False), (right, True)):
        axes.set_title("causal" if causal else "bidirectional")
        rows = [{**row, "mixer": row["how"]} for row in result["rows"] if row["causal"] == causal]
        _lines(axes, rows, lambda row: row["seconds"])
        axes.set_ylabel("seconds")


def distributed_volumes(result: dict[str, Any], left: Axes, right: Axes) -> None:
    """GiB that each process sends for one attention over the number of processes, by scheme."""
    longest = max(row["tokens"] for row in result["rows"])
    for axes, model in zip((left, right), dict.fromkeys(row["model"] for row in result["rows"]), strict=True):
        mine = [row for row in result["rows"] if (row["model"], row["tokens"]) == (model, longest) and "sent" in row]
        for scheme in dict.fromkeys(row["scheme"] for row in mine):
            of_scheme = [row for row in mine if row["scheme"] == scheme]
            sent = [row["sent"] / 2**30 for row in of_scheme]
            axes.plot([row["ranks"] for row in of_scheme], sent, marker="o", label=scheme)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("processes")
        axes.set_ylabel(f"GiB sent for {longest:,} tokens")
        axes.set_title(model)
        axes.legend()


def _lines(axes: Axes, rows: list[dict[str, Any]], height: Callable[[dict[str, Any]], float]) -> None:
    for name in dict.fromkeys(row["mixer"] for row in rows):
        mine = [row for row in rows if row["mixer"] == name]
        axes.plot([row["length"] for row in mine], [height(row) for row in mine], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.legend()


def _bars(axes: Axes, values: dict[str, float]) -> None:
    axes.barh(list(values), list(values.values()))
    axes.invert_yaxis()


PLOTS: dict[str, Callable[[dict[str, Any], Axes, Axes], None]] = {
    draw.__name__: draw
    for draw in (mixers, scaling, long_range, million, onnx_encoder, onnx_decoder, distributed, distributed_volumes)
}


def drawn(name: str, folder: Path = HERE / "results") -> Path:
    """The picture of one result, beside it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    PLOTS[name](load(name), left, right)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def main() -> None:
    """All results that are there."""
    for name in PLOTS:
        if measured(name):
            print(drawn(name))


if __name__ == "__main__":
    main()
