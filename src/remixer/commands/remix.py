"""`remixer remix`: a model with other mixers, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.artifacts import check_artifact, save
from remixer.commands.chosen import choice_of
from remixer.commands.example_inputs import described, inputs_for
from remixer.commands.models import find
from remixer.commands.options import Batch, Inputs, Length, MaxLength, Mixers, Model
from remixer.commands.rewriting import rewritten


def remix(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to save the result to.")],
    mixer: Mixers = None,
    plan: Annotated[Path | None, typer.Option(help="What `remixer plan` wrote, instead of --mixer.")] = None,
    max_length: MaxLength = None,
    positions: Annotated[
        Literal["repeat", "interpolate"], typer.Option(help="What learned tables of positions hold further on.")
    ] = "repeat",
    rotary: Annotated[
        Literal["interpolate", "ntk"] | None, typer.Option(help="How to slow rotary embeddings down for --max-length.")
    ] = None,
    trained_length: Annotated[
        int | None, typer.Option(min=1, help="The longest input of training, for --rotary, where nothing tells.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Fail where a chosen attention can't take its mixer.")] = False,
    original: Annotated[bool, typer.Option(help="Save what `remixer transfer` needs of the original, too.")] = True,
    inputs: Inputs = None,
    batch: Batch = None,
    length: Length = None,
) -> Answer:
    """Replace attentions of a model by other mixers, and save the result.

    Example: remixer remix gpt2 --mixer 'long_short(window=64)' --out small
    """
    choice = choice_of(mixer or [], plan)
    check_artifact(out)
    found = find(model)
    example = inputs_for(found, inputs, batch, length)
    result = rewritten(
        found,
        choice,
        example,
        strict=strict,
        max_length=max_length,
        positions=positions,
        rotary=rotary,
        trained_length=trained_length,
    )
    save(result, out, found.tokenizer, original=original)
    report = result.report
    data = {
        "out": out,
        "inputs": described(example),
        "notes": list(found.notes),
        "report": report.to_dict(),
    }
    return Answer(Group(report, Text(f"saved to {out}")), data)
