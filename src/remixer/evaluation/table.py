"""An evaluation as one table: a row for each figure, a column for each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.table import Table
from rich.text import Text

from remixer.evaluation.planted import words_of

if TYPE_CHECKING:
    from remixer.evaluation.result import Evaluation, Scores

Row = tuple[str, list[str]]
T = TypeVar("T")


def table_of(models: Mapping[str, Scores]) -> Table:
    """All figures that some model has."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right", overflow="fold")
    scores = list(models.values())
    for section in (_perplexity, _agreement, _generation, _embeddings, _needles, _tasks, _costs):
        rows = list(section(scores))
        for label, cells in rows:
            table.add_row(label, *cells)
        if rows:
            table.add_section()
    return table


def remarks(evaluation: Evaluation) -> list[Text]:
    """What a reader of the table should know."""
    lines = []
    if len(evaluation.models) > 1:
        teacher = next(iter(evaluation.models))
        lines.append(f"Ratios, agreement and cosines are to {teacher}; ± is one standard error over windows.")
    if evaluation.only_perplexity:
        lines.append("Perplexity hides damage: measure a task, a needle, or what the models write, too.")
    return [Text(line) for line in lines]


def _perplexity(scores: list[Scores]) -> Iterator[Row]:
    found = [one.perplexity for one in scores if one.perplexity]
    if not found:
        return
    yield "perplexity", _cells(found, lambda each: f"{each.perplexity:.2f}")
    yield "ratio", _cells(found, lambda each: _with_error(each.ratio, each.error))
    for buckets in zip(*(each.buckets for each in found), strict=True):
        label = f"  after {buckets[0].start:,} to {buckets[0].stop - 1:,} tokens"
        yield label, _cells(buckets, lambda each: f"{each.perplexity:.2f}, {_with_error(each.ratio, each.error)}")


def _agreement(scores: list[Scores]) -> Iterator[Row]:
    found = [one.agreement for one in scores]
    for first in [each for each in found if each][:1]:
        yield "next token the same", _cells(found, lambda each: f"{each.top1:.3f}")
        yield f"of the top {first.top}", _cells(found, lambda each: f"{each.overlap:.3f}")
        yield "KL divergence, nats", _cells(found, lambda each: f"{each.kl:.4f}")


def _generation(scores: list[Scores]) -> Iterator[Row]:
    found = [one.generation for one in scores]
    for first in [each for each in found if each][:1]:
        yield "written tokens the same", _cells(found, lambda each: f"{each.agreement:.3f}")
        yield f"the same at first, of {first.tokens}", _cells(found, lambda each: f"{each.prefix:.1f}")


def _embeddings(scores: list[Scores]) -> Iterator[Row]:
    found = [one.embeddings for one in scores]
    for first in [each for each in found if each][:1]:
        yield "cosine", _cells(found, lambda each: f"{each.cosine:.4f}")
        yield "lowest cosine", _cells(found, lambda each: f"{each.lowest:.4f}")
        yield f"overlap@{first.neighbours}", _cells(found, lambda each: f"{each.overlap:.3f}")


def _needles(scores: list[Scores]) -> Iterator[Row]:
    for needles in zip(*(one.needles for one in scores), strict=True):
        label = f"secret {words_of(needles[0].distance)} back, nats"
        yield label, _cells(needles, lambda each: f"{each.planted.rest:.2f}, top-1 {each.planted.top1:.2f}")
        others = [each.baseline for each in needles]
        yield "  another one planted", _cells(others, lambda each: f"{each.rest:.2f}, top-1 {each.top1:.2f}")
        yield "  gain", _cells(needles, lambda each: _with_error(each.gain, each.error))


def _tasks(scores: list[Scores]) -> Iterator[Row]:
    for tasks in zip(*(one.tasks for one in scores), strict=True):
        yield tasks[0][0], [f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" for _, value in tasks]


def _costs(scores: list[Scores]) -> Iterator[Row]:
    lengths = list(zip(*(one.costs for one in scores), strict=True))
    for costs in lengths:
        yield f"seconds, {costs[0].length:,}", _cells(costs, lambda each: f"{each.seconds:.3g}")
    for costs in lengths:
        grown = [each.bytes for each in costs]
        yield f"MiB at most, {costs[0].length:,}", _cells(grown, lambda each: f"{each / 2**20:,.1f}")


def _cells(found: Sequence[T | None], cell: Callable[[T], str]) -> list[str]:
    return ["-" if each is None else cell(each) for each in found]


def _with_error(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" + (f" ±{error:.3f}" if error is not None else "")
