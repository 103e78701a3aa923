"""What is seen on stderr while something takes its time; nothing where nobody looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """A line that says what is being done, and for how long."""
    with _progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
        bar.add_task(what, total=None)
        yield


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over so many steps; gives what is to be called before each of them, with its name."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _progress(*columns) as bar:
        task = bar.add_task(what, total=total)
        begun = 0

        def begin(step: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{what}: {step}")
            begun += 1

        yield begin


def watched() -> bool:
    """Whether somebody looks at stderr."""
    return Console(stderr=True).is_terminal


def note(words: str) -> None:
    """Tell what its user should know, on stderr, whoever looks at it."""
    Console(stderr=True, soft_wrap=True).print(words, style="yellow", highlight=False, markup=False)


def _progress(*columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
