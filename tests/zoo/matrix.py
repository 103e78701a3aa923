"""The zoo as a matrix: what is understood of every family in every form, printed and written as a page.

python tests/zoo/matrix.py [--page docs/zoo.md] [--against docs/zoo.md] [--jobs 2]
"""

import argparse
import multiprocessing
import os
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from examine import Outcome, examine
from families import CASES, FAMILIES, KINDS
from known import KNOWN
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from remixer.report import SiteReport

FORMS = ("sdpa", "eager")
ABSENT, MISSING = "-", "not in this version"


@dataclass
class Cell:
    """One family in one form, in words.

    Attributes:
        verdict: "2 recognised", "2 kept", "no attention", "refused", "failed".
        computes: what the attentions are, each kind once.
        reasons: why some are kept.
        problems: what is not as expected.
        understood: how many attentions are.
        kept: how many are kept with the right reason.
        exact: whether the rewritten model is the original; None where nothing could be rewritten.
    """

    verdict: str
    computes: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    understood: int = 0
    kept: int = 0
    exact: bool | None = None


def cell_of(name: str, form: str) -> Cell:
    """Examine one case; runs in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    family = next(family for family in FAMILIES if family.name == name)
    try:
        outcome = examine(family, form)
    except Exception as error:  # whatever stops a model stops its cell only
        told = (str(error).splitlines() or [""])[0]
        return Cell("failed", problems=[f"{type(error).__name__}: {told[:200]}"])
    return _in_words(outcome)


def _in_words(outcome: Outcome) -> Cell:
    problems = outcome.problems + [f"round trip: {told}" for told in outcome.differences]
    counts = [(len(outcome.understood), "recognised"), (len(outcome.kept), "kept")]
    told = ", ".join(f"{count} {word}" for count, word in counts if count) or "no attention"
    told = "refused" if outcome.refused else told
    return Cell(
        "failed" if problems else told,
        list(dict.fromkeys(str(site.spec) for site in outcome.understood)),
        [outcome.refused] if outcome.refused else list(dict.fromkeys(map(_reason, outcome.kept))),
        problems,
        len(outcome.understood),
        len(outcome.kept),
        not outcome.differences if outcome.understood else None,
    )


def _reason(site: SiteReport) -> str:
    """Why a site is kept, without its place."""
    return re.sub(r" \(at .*", "", site.reason)


def all_cells(jobs: int, only: str) -> dict[tuple[str, str], Cell]:
    """Every case that this version has and whose name holds `only`, with a bar that shows how far it is."""
    wanted = [(family.name, form) for family, form in CASES if family.exists and only in family.name]
    cells: dict[tuple[str, str], Cell] = {}
    with (
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
        Progress(console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("families", total=len(wanted))
        running = {case: pool.submit(cell_of, *case) for case in wanted}
        for case, future in running.items():
            cells[case] = future.result()
            progress.update(bar, advance=1, description=case[0])
    return cells


def shown(cells: dict[tuple[str, str], Cell], family: str, form: str) -> str:
    """What stands in a cell."""
    if not next(one for one in FAMILIES if one.name == family).exists:
        return MISSING
    cell = cells.get((family, form))
    return ABSENT if cell is None else cell.verdict


def printed(cells: dict[tuple[str, str], Cell]) -> Table:
    """The matrix for a terminal."""
    table = Table("family", *FORMS, "what it computes", title="The model zoo")
    style = {"failed": "red", ABSENT: "dim", MISSING: "dim"}
    for families in KINDS.values():
        for family in families:
            words = [shown(cells, family.name, form) for form in FORMS]
            told = [f"[{style.get(word, 'yellow' if 'kept' in word else 'green')}]{word}[/]" for word in words]
            table.add_row(family.name, *told, "; ".join(_computed(cells, family.name)))
        table.add_section()
    return table


def _computed(cells: dict[tuple[str, str], Cell], family: str) -> list[str]:
    found = [told for form in FORMS if (cell := cells.get((family, form))) for told in cell.computes]
    return list(dict.fromkeys(found))


def page(cells: dict[tuple[str, str], Cell], command: str) -> str:
    """The page in docs/."""
    lines = [
        "# The model zoo",
        "",
        "Tiny models with random weights of every family, in every form of attention that its class has. Each is",
        "explained and held against what its configuration says; then every attention is raised to the canonical",
        "operator and lowered back, and the result is run beside the original at batches, lengths and paddings that",
        "were not seen at capture. A cell says how many attentions were recognised with the right meaning, or kept",
        "with the right reason; where torch.export traces something else than the model computes, the model must be",
        "*refused*. *Failed* cells are listed below with what is wrong.",
        "",
        f"Made by `{command}` with torch {torch.__version__.split('+')[0]} and transformers "
        f"{transformers.__version__}.",
        "",
        *_figures(cells),
    ]
    for title, families in KINDS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| family | class | sdpa | eager | what it computes |",
            "|---|---|---|---|---|",
        ]
        for family in families:
            words = " | ".join(shown(cells, family.name, form) for form in FORMS)
            computes = "<br>".join(_computed(cells, family.name)) or ABSENT
            lines.append(f"| {family.name} | {family.model} | {words} | {computes} |")
    reasons = _told(cells, "reasons")
    failed = _told(cells, "problems")
    lines += ["", "## Why some are kept, or refused", "", *(reasons or ["None is."])]
    lines += ["", "## What fails", "", *(failed or ["Nothing does."])]
    return "\n".join(lines) + "\n"


def _figures(cells: dict[tuple[str, str], Cell]) -> list[str]:
    right = {case: cell for case, cell in cells.items() if cell.verdict != "failed"}
    families = {name for name, _ in cells}
    missing = [family.name for family in FAMILIES if not family.exists]
    exact = [cell.exact for cell in cells.values() if cell.exact is not None]
    lines = [
        f"- {len(families)} families, {len(cells)} cases (family x form); {len(right)} as expected, "
        f"{len(cells) - len(right)} failed",
        f"- {sum(cell.understood for cell in right.values())} attentions recognised and "
        f"{sum(cell.kept for cell in right.values())} kept with the right reason in those",
        f"- round trip exact to 1e-5 in {sum(exact)} of {len(exact)} models with a recognised attention",
    ]
    if missing:
        lines.append(f"- {len(missing)} families are not in this version and were skipped: {', '.join(missing)}")
    return lines


def _told(cells: dict[tuple[str, str], Cell], what: str) -> list[str]:
    lines = []
    for (name, form), cell in cells.items():
        told = list(dict.fromkeys(_brief(line) for line in getattr(cell, what)))
        lines += [f"- {name}, {form}: {'; '.join(told)}" for _ in told[:1]]
    return lines


def _brief(line: str) -> str:
    """A problem without the number of its layer, so that equal ones are said once."""
    return re.sub(r"\.\d+\.", ".*.", line)[:400]


def differences(cells: dict[tuple[str, str], Cell], other: str) -> list[str]:
    """Where cells differ from those of another page."""
    rows = re.findall(r"^\| (.+?) \| \w+ \| (.+?) \| (.+?) \| .* \|$", other, re.MULTILINE)
    lines = []
    for name, *words in rows:
        for form, then in zip(FORMS, words, strict=True):
            now = shown(cells, name, form) if any(family.name == name for family in FAMILIES) else MISSING
            if now not in (then, MISSING):
                lines.append(f"- {name}, {form}: {now} here, {then} there")
    return lines


def main(arguments: Iterable[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="The model zoo as a matrix.")
    parser.add_argument("--page", type=Path, help="write the matrix to this Markdown file")
    parser.add_argument("--against", type=Path, help="list in the page where another page differs")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", default="", help="families whose names hold this")
    parser.add_argument("--command", default="make zoo-page", help="what the page says that it was made by")
    asked = parser.parse_args(list(arguments) if arguments is not None else None)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cells = all_cells(asked.jobs, asked.only)
    console = Console(width=160)
    console.print(printed(cells))
    for line in [*_figures(cells), *_told(cells, "problems")]:
        console.print(line, markup=False)
    unexpected = {case for case, cell in cells.items() if (cell.verdict == "failed") != (case in KNOWN)}
    console.print(f"{len(unexpected)} cases are not as tests/zoo/known.py says: {sorted(unexpected)}", markup=False)
    if asked.page is not None:
        text = page(cells, asked.command)
        if asked.against is not None:
            told = differences(cells, asked.against.read_text())
            text += f"\n## Where this differs from {asked.against.name}\n\n" + "\n".join(told or ["Nowhere."]) + "\n"
        asked.page.write_text(text)


if __name__ == "__main__":
    main()
