"""An evaluation as one figure."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remixer.evaluation.errors import EvaluationError
from remixer.export.files import whole

if TYPE_CHECKING:
    from remixer.evaluation.result import Evaluation, Scores

Panel = Callable[[Any, Mapping[str, "Scores"]], None]


def draw(evaluation: Evaluation, path: Path) -> Path:
    """Write the figure, whole or not at all."""
    models = evaluation.models
    panels = [panel for panel, has in PANELS.items() if any(has(scores) for scores in models.values())]
    if not panels:
        raise EvaluationError("there is no curve to draw: none of perplexity, needle, generation and cost was measured")
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError("figures need matplotlib: pip install 'remixer[demo]'")
    if not path.suffix or not path.parent.is_dir():
        raise EvaluationError(f"a figure needs a file name with an ending in a folder that exists, got {str(path)!r}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, models)
        axes.legend(fontsize=8)
    with whole(path) as draft:
        figure.savefig(draft, dpi=110)
    return path


def _perplexity(axes: Any, models: Mapping[str, Scores]) -> None:
    for name, scores in models.items():
        buckets = scores.perplexity.buckets if scores.perplexity else ()
        axes.plot([each.stop for each in buckets], [each.perplexity for each in buckets], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens before, less than")
    axes.set_ylabel("perplexity")


def _needles(axes: Any, models: Mapping[str, Scores]) -> None:
    for name, scores in models.items():
        away = [sum(each.distance) / 2 for each in scores.needles]
        (line,) = axes.plot(away, [each.planted.rest for each in scores.needles], marker="o", label=name)
        others = [each.baseline.rest for each in scores.needles if each.baseline]
        if others:
            axes.plot(away, others, marker=".", linestyle="--", color=line.get_color())
    axes.set_xlabel("tokens back; dashed: another secret planted")
    axes.set_ylabel("log-probability, nats a token")


def _generation(axes: Any, models: Mapping[str, Scores]) -> None:
    for index, (name, scores) in enumerate(models.items()):
        if scores.generation:
            steps = scores.generation.steps
            axes.plot(range(1, len(steps) + 1), steps, marker="o", label=name, color=f"C{index}")  # as in other panels
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("token written")
    axes.set_ylabel("share that is the teacher's")


def _seconds(axes: Any, models: Mapping[str, Scores]) -> None:
    for name, scores in models.items():
        axes.plot(
            [each.length for each in scores.costs], [each.seconds for each in scores.costs], marker="o", label=name
        )
    _by_length(axes, "seconds")


def _memory(axes: Any, models: Mapping[str, Scores]) -> None:
    for name, scores in models.items():
        known = [(each.length, each.bytes / 2**20) for each in scores.costs if each.bytes]
        axes.plot([length for length, _ in known], [grown for _, grown in known], marker="o", label=name)
    _by_length(axes, "MiB at most")


def _by_length(axes: Any, height: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel(height)


PANELS: dict[Panel, Callable[[Scores], bool]] = {
    _perplexity: lambda scores: scores.perplexity is not None,
    _needles: lambda scores: bool(scores.needles),
    _generation: lambda scores: scores.generation is not None,
    _seconds: lambda scores: bool(scores.costs),
    _memory: lambda scores: any(each.bytes for each in scores.costs),
}
