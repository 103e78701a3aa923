"""Where the graphs of a model come from: what was kept of its passes, what it was made from, or a new capture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.export import ExportedProgram

from remixer.passes.recognise_attention import RULES
from remixer.recognising import recognise
from remixer.remixed import Remixed
from remixer.report import Report
from remixer.reporting import report_of
from remixer.rewrite.capture import Inputs
from remixer.rewrite.program import Program
from remixer.viewing.trace import Trace


@dataclass(frozen=True)
class Story:
    """All that a page tells of a model.

    Attributes:
        model: class name.
        trace: its graphs.
        report: what is known of its attentions, if anything.
        notes: sentences about what is not shown, and why.
    """

    model: str
    trace: Trace
    report: Report | None
    notes: tuple[str, ...] = ()


def story_of(model: nn.Module | ExportedProgram, inputs: Inputs | None) -> Story:
    """What there is to tell of a model.

    Raises:
        CaptureError: a model that isn't remixed, and its inputs don't fit, or torch.export refuses it.
    """
    if not isinstance(model, Remixed):
        trace = Trace()
        steps = recognise(model, inputs, RULES, trace)
        return Story(steps.model, trace, report_of(steps, "understood"))
    report: Report | None = model.meta.get("report")
    name = report.model if report is not None else type(model).__name__
    kept: Trace | None = model.meta.get("trace")
    if kept is not None:
        return Story(name, kept, report)
    trace, notes = Trace(), []
    before = model.meta.get("original")
    if before is None:
        notes.append(
            "The model that this one was made from is not there, so there is only one graph to show. Pickles don't "
            "hold it; artifacts do where they are saved with original=True."
        )
    else:
        trace.start(before.as_it_was, "before", "the model, its attentions in canonical spelling")
        notes.append("For the graph after each pass, remix with trace=True.")
    if model.meta.get("unpickled"):
        notes.append("This model comes from a pickle, which doesn't hold the shapes of values.")
        after = Program(model)
    else:
        after = Program.of(model)
    trace.start(after, "after", "the rewritten model")
    return Story(name, trace, report, tuple(notes))
