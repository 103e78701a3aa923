"""What is seen of a transfer while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from remixer.distillation.budget import Budget
from remixer.distillation.checkpoint import Reached


@contextlib.contextmanager
def shown(stage: str, wanted: bool) -> Iterator[Callable[[Budget, Reached], None]]:
    """A bar with the loss of the worst site, on stderr; gives what is to be called after each step."""
    if not wanted:
        yield lambda budget, reached: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(stage, total=1.0)

        def watch(budget: Budget, reached: Reached) -> None:
            now = {group: losses[-1] for group, losses in reached.losses.items()}
            worst = max(now, key=now.__getitem__)
            mean = sum(now.values()) / len(now)
            told = f"{stage}, step {budget.step}: mean {mean:.4f}"
            told += f", most {now[worst]:.4f} at {worst}" if len(now) > 1 else ""
            bar.update(task, completed=min(1.0, budget.progress), description=told)

        yield watch
