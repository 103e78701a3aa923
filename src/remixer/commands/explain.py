"""`remixer explain`: what attentions a model has."""

from __future__ import annotations

from remixer.commands.answering import NOTHING, Answer
from remixer.commands.example_inputs import described, inputs_for
from remixer.commands.models import find
from remixer.commands.options import Batch, Inputs, Length, Model
from remixer.commands.progress import doing


def explain(model: Model, inputs: Inputs = None, batch: Batch = None, length: Length = None) -> Answer:
    """Tell what attentions a model has, what each computes, and how far that is proven. Changes nothing.

    Example: remixer explain sentence-transformers/all-MiniLM-L6-v2
    """
    import remixer

    found = find(model)
    if found.remixed is not None:
        report, given = found.remixed.report, {}
    else:
        example = inputs_for(found, inputs, batch, length)
        given = described(example)
        with doing("capturing and looking for attentions"):
            report = remixer.explain(found.model, example)
    understood = any(site.status in ("understood", "replaced") for site in report.sites)
    data = {"model": model, "inputs": given, "notes": list(found.notes), "report": report.to_dict()}
    return Answer(report, data, 0 if understood else NOTHING)
