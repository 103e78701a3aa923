"""`remixer bench`: seconds and memory over the length, as it was and rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.chosen import choice_of
from remixer.commands.example_inputs import inputs_for
from remixer.commands.models import ModelError, find
from remixer.commands.options import Batch, Device, Inputs, MaxLength, Mixers, Model, Plot
from remixer.commands.places import check_picture
from remixer.commands.progress import counting
from remixer.commands.rewriting import rewritten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from remixer.evaluation.costs import Cost
    from remixer.rewrite.inputs import Call
    from remixer.rewrite.program import Program

ORIGINAL, REWRITTEN = "original", "rewritten"


def bench(
    model: Model,
    mixer: Mixers = None,
    plan: Annotated[Path | None, typer.Option(help="What `remixer plan` wrote, instead of --mixer.")] = None,
    lengths: Annotated[str, typer.Option(help="In tokens, with commas between.")] = "512,1024,2048,4096",
    batch: Batch = None,
    runs: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 3,
    max_length: MaxLength = None,
    plot: Plot = None,
    inputs: Inputs = None,
    device: Device = None,
) -> Answer:
    """Measure forward passes of a model as it was and rewritten, over the length.

    Example: remixer bench gpt2 --mixer 'long_short(window=64)' --lengths 256,512,1024 --plot cost.png
    """
    import torch

    wanted = _lengths(lengths)
    check_picture(plot)
    found = find(model)
    found.refuse_if_remixed(mixer, plan, inputs)
    if found.remixed is not None:
        small = found.remixed
        before: nn.Module | None = None if small.original is None else small.original.graph_module
    else:
        choice = choice_of(mixer or [], plan)
        before = found.model
        small = rewritten(found, choice, inputs_for(found, inputs, None, None), max_length=max_length)
    from remixer.rewrite.program import Program

    program = Program.of(small)
    models: dict[str, nn.Module] = {ORIGINAL: before, REWRITTEN: small} if before is not None else {REWRITTEN: small}
    models = {name: each if device is None else each.to(device) for name, each in models.items()}
    calls = {length: call_at(program, 1 if batch is None else batch, length) for length in wanted}
    costs, failed = _measured(models, calls, runs)
    if not any(costs.values()):
        raise ModelError("; ".join(failed))
    result = _evaluation(costs)
    if plot is not None:
        result.plot(plot)
    told = {
        "models": {name: json.loads(result.to_json())["models"][name]["costs"] for name in models},
        "failed": failed,
        "batch": 1 if batch is None else batch,
        "runs": runs,
        "threads": torch.get_num_threads(),
        "device": device or "cpu",
        "plot": plot,
    }
    return Answer(Group(_table(costs, wanted), *map(Text, failed)), told)


def _lengths(written: str) -> list[int]:
    try:
        found = sorted({int(each) for each in written.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"lengths are numbers with commas between, got {written!r}") from error
    if found[0] < 2:
        raise typer.BadParameter(f"lengths start at 2 tokens, got {found[0]}")
    return found


def call_at(program: Program, batch: int, length: int) -> Call:
    """Inputs of so many rows and tokens, all of which exist.

    Raises:
        ModelError: the model takes inputs of one length only, or none as long.
    """
    import torch

    from remixer.rewrite.elsewhere import example_at

    if not program.length:
        why = "".join(f": {one}" for one in program.static[:1])
        raise ModelError(f"the model takes inputs of one length only{why}")
    for symbol in program.length:
        most = program.limits.get(symbol, (0, None))[1]
        if most is not None and length > most:
            raise ModelError(
                f"the rewritten model takes no more than {most:,} tokens, not {length:,}: say --max-length"
            )
    sizes = dict.fromkeys(program.batch, batch) | dict.fromkeys(program.length, length)
    args, kwargs = example_at(program, sizes)
    named = {
        name: torch.ones_like(value) if "mask" in name and isinstance(value, torch.Tensor) else value
        for name, value in kwargs.items()
    }
    return args, named


def _measured(
    models: dict[str, nn.Module], calls: dict[int, Call], runs: int
) -> tuple[dict[str, list[Cost]], list[str]]:
    """Costs by model, and what was said of lengths that a model can't take."""
    from remixer.evaluation import cost

    costs: dict[str, list[Cost]] = {name: [] for name in models}
    failed = []
    with counting("measuring", len(models) * len(calls)) as begin:
        for length, call in calls.items():
            for name, each in models.items():
                begin(f"{name} at {length:,} tokens")
                try:
                    costs[name] += cost(each, lambda _, call=call: _by_batch(call), [length], runs=runs)  # type: ignore[misc]
                except (RuntimeError, IndexError, ValueError) as error:  # whatever a model's own code raises
                    first = str(error).strip().partition("\n")[0]
                    failed.append(f"{name} can't take {length:,} tokens: {type(error).__name__}: {first:.200}")
    return costs, failed


def _by_batch(call: Call) -> Any:
    """A call that is not looked at for token ids and masks."""
    from remixer.evaluation import Batch as Given

    return Given(call)


def _evaluation(costs: dict[str, list[Cost]]) -> Any:
    """Costs as an evaluation, which draws and writes them."""
    import torch

    from remixer.evaluation.evaluating import versions
    from remixer.evaluation.result import Evaluation, Scores

    scores = {name: Scores(costs=tuple(each)) for name, each in costs.items()}
    return Evaluation(scores, 0, torch.get_num_threads(), versions())


def _table(costs: dict[str, list[Cost]], lengths: Sequence[int]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("tokens", justify="right")
    for name in costs:
        table.add_column(f"{name}, s", justify="right")
    table.add_column("times faster", justify="right")
    for name in costs:
        table.add_column(f"{name}, MiB at most", justify="right")
    found = {(name, each.length): each for name, some in costs.items() for each in some}
    for length in lengths:
        row = [found.get((name, length)) for name in costs]
        old, new = found.get((ORIGINAL, length)), found.get((REWRITTEN, length))
        table.add_row(
            f"{length:,}",
            *("-" if each is None else f"{each.seconds:.3g}" for each in row),
            f"{old.seconds / new.seconds:.2f}" if old and new else "-",
            *("-" if each is None or each.bytes is None else f"{each.bytes / 2**20:,.1f}" for each in row),
        )
    return table
