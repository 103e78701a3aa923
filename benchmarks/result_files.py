"""The files in benchmarks/results, and their figures as tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HERE = Path(__file__).parent


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


def by_length(rows: list[Row], name: str) -> Iterator[tuple[str, str, dict[int, Row]]]:
    """What was measured of one attention each: its name, its direction, and its rows by their lengths.

    Args:
        rows: with a length, and whether they are causal.
        name: what the name stands under in a row.
    """
    for causal in (False, True):
        for each in dict.fromkeys(row[name] for row in rows):
            found = {row["length"]: row for row in rows if (row[name], row["causal"]) == (each, causal)}
            yield each, "causal" if causal else "bidirectional", found


def source(result: dict[str, Any], name: str) -> str:
    """Where figures come from."""
    machine = result["machine"]
    return (
        f"\n`{result['command']}` on {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}: [`{name}.json`](benchmarks/results/{name}.json).\n"
    )
