"""From a model to a program in which every attention that was understood is a site."""

from __future__ import annotations

import time

from torch import nn
from torch.export import ExportedProgram

from remixer.errors import AlreadyRemixedError
from remixer.mixers import Mixer
from remixer.passes.pipelines import recognition
from remixer.reporting import Steps
from remixer.rewrite.capture import Inputs, capture
from remixer.rewrite.rule import Rule
from remixer.viewing.trace import Trace


def recognise(
    model: nn.Module | ExportedProgram, inputs: Inputs | None, rules: tuple[Rule, ...], trace: Trace | None = None
) -> Steps:
    """Capture a model and find its attentions; a trace is told of every graph.

    Raises:
        CaptureError: the inputs don't fit the model, or torch.export refuses it.
        AlreadyRemixedError: the model was rewritten before.
    """
    _refuse_remixed(model)
    start = time.perf_counter()
    program = capture(model, inputs)
    steps = Steps(type(model).__name__, program, time.perf_counter() - start, trace)
    steps.add(recognition(rules)(program))
    return steps


def _refuse_remixed(model: nn.Module | ExportedProgram) -> None:
    if not isinstance(model, nn.Module):
        return
    for path, module in model.named_modules():
        if isinstance(module, Mixer):
            raise AlreadyRemixedError(
                f"{type(model).__name__} is already rewritten: {module.config.name!r} stands at {path}. "
                "Remix the original model, with all that you want in one mapping; remixer.undo gives it back where "
                "mixers were put inside"
            )
