"""What a transfer did."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from remixer.distillation.checkpoint import Reached

WIDTH = 120


@dataclass(frozen=True)
class StageReport:
    """One stage of a transfer.

    Attributes:
        name: "attention" or "outputs".
        steps: that were done.
        seconds: that they took.
        losses: one for each step, by site, or of the "outputs".
        judged: losses on the validation data, with the step that each was measured after.
    """

    name: str
    steps: int
    seconds: float
    losses: dict[str, list[float]]
    judged: tuple[tuple[int, dict[str, float]], ...] = ()

    @staticmethod
    def of(reached: Reached) -> StageReport:
        """From what the loop reached."""
        return StageReport(reached.stage, reached.step, reached.seconds, reached.losses, tuple(reached.judged))

    def first_and_last(self, group: str) -> tuple[float, float]:
        """The loss at the start and at the end: on the validation data, or means of up to 8 steps of training."""
        if self.judged:
            return self.judged[0][1][group], min(losses[group] for _, losses in self.judged)
        found = self.losses[group]
        few = min(8, max(1, len(found) // 4))
        return sum(found[:few]) / few, sum(found[-few:]) / few


@dataclass(frozen=True)
class TransferReport:
    """All stages of a transfer. Print it, or `plot` it."""

    stages: tuple[StageReport, ...]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            stage.name: {
                "steps": stage.steps,
                "seconds": stage.seconds,
                "losses": stage.losses,
                "judged": [[step, losses] for step, losses in stage.judged],
            }
            for stage in self.stages
        }

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False)
        for stage in self.stages:
            kind = "on the validation data" if stage.judged else "in training"
            table = Table(
                title=f"{stage.name}: {stage.steps} steps, {stage.seconds:.0f} s, losses {kind}", show_edge=False
            )
            table.add_column("of")
            table.add_column("at the start", justify="right")
            table.add_column("at the end", justify="right")
            for group in stage.losses:
                first, last = stage.first_and_last(group)
                table.add_row(group, f"{first:.4f}", f"{last:.4f}")
            console.print(table)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw all losses over the steps to a file."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1, len(self.stages), figsize=(6 * len(self.stages), 4), layout="constrained", squeeze=False
        )
        for axis, stage in zip(axes[0], self.stages, strict=True):
            for group, losses in stage.losses.items():
                axis.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label=group)
            axis.set(title=stage.name, xlabel="steps", ylabel="loss", yscale="log")
            axis.grid(alpha=0.3)
            if len(stage.losses) <= 12:
                axis.legend(fontsize=7)
        figure.savefig(path, dpi=120)
        plt.close(figure)
