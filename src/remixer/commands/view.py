"""`remixer view`: a model's graph before and after, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.chosen import mapping_of
from remixer.commands.example_inputs import inputs_for
from remixer.commands.models import find
from remixer.commands.options import Batch, Inputs, Length, Mixers, Model
from remixer.commands.places import check_place
from remixer.commands.progress import doing
from remixer.commands.rewriting import rewritten


def view(
    model: Model,
    html: Annotated[Path, typer.Option(help="The file to write.")],
    mixer: Mixers = None,
    inputs: Inputs = None,
    batch: Batch = None,
    length: Length = None,
) -> Answer:
    """Draw a model's graph before and after as one HTML file, which needs no network.

    A model that isn't rewritten yet is rewritten with --mixer, or shown as it is.

    Example: remixer view small --html small.html
    """
    import remixer

    check_place(html, "a page")
    found = find(model)
    found.refuse_if_remixed(mixer, inputs, batch, length)
    if found.remixed is not None:
        shown, example = found.model, None
    else:
        example = inputs_for(found, inputs, batch, length)
        shown = found.model
        if mixer:
            shown, example = rewritten(found, mapping_of(mixer), example, trace=True), None
    with doing("drawing"):
        remixer.view(shown, html, inputs=example)
    return Answer(Text(f"wrote {html}"), {"out": html, "bytes": html.stat().st_size})
