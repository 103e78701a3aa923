"""Seconds and memory of a forward pass over the length."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from remixer.evaluation.batches import Batch
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.memory import grown_bytes
from remixer.evaluation.outputs import Model, call_of
from remixer.rewrite.inputs import Inputs


@dataclass(frozen=True)
class Cost:
    """One length.

    Attributes:
        length: as it was asked for.
        seconds: of a warm forward pass, the median of several.
        bytes: by how much one grows the process at most, or what it takes of a GPU; None where that can't be read.
    """

    length: int
    seconds: float
    bytes: int | None


def cost(
    model: Model, inputs_at: Callable[[int], Inputs | Batch], lengths: Sequence[int], *, runs: int = 3
) -> tuple[Cost, ...]:
    """Measure forward passes, in eval mode, without gradients, in this process.

    At each length one pass goes first and isn't counted, one is for memory, and the others are for time. Memory tells
    apart what is large beside what a process does anyway: some MiB.

    Args:
        model: any module, or function.
        inputs_at: what to give it at a length.
        lengths: in tokens; one result for each.
        runs: of how many passes to take the median.

    Raises:
        EvaluationError: there are no lengths, or some below 1, or no runs.

    Examples:
        >>> [each.length for each in cost(torch.nn.Linear(8, 8), lambda length: torch.zeros(1, length, 8), [4, 16])]
        [4, 16]
    """
    check_cost(lengths, runs)
    device = next((weight.device for weight in model.parameters()), None) if isinstance(model, nn.Module) else None
    found = []
    with torch.no_grad(), _in_eval(model):
        for length in lengths:
            args, kwargs = call_of(model, Batch.of(inputs_at(length)))

            def run(args: tuple[object, ...] = args, kwargs: dict[str, object] = kwargs) -> object:
                return model(*args, **kwargs)

            run()
            grown = grown_bytes(run, device)
            found.append(Cost(length, statistics.median(_seconds(run, device) for _ in range(runs)), grown))
    return tuple(found)


def check_cost(lengths: Sequence[int], runs: int) -> None:
    """Raise EvaluationError unless there are lengths and runs."""
    if not lengths or min(lengths) < 1:
        raise EvaluationError(f"lengths must be one or more numbers of tokens, from 1, got {list(lengths)}")
    if runs < 1:
        raise EvaluationError(f"runs must be 1 or more, got {runs}")


def _seconds(run: Callable[[], object], device: torch.device | None) -> float:
    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


@contextlib.contextmanager
def _in_eval(model: Model) -> Iterator[None]:
    """In eval mode as it runs in earnest: fused paths stay on."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [(module, module.training) for module in modules]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
