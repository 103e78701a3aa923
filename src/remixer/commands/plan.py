"""`remixer plan`: which attentions to replace by what, at the least harm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.chosen import configs_of
from remixer.commands.data import Texts, read_data
from remixer.commands.example_inputs import InputsError, inputs_for
from remixer.commands.models import find
from remixer.commands.options import (
    Data,
    Device,
    Field,
    Inputs,
    Model,
    Plot,
    Seed,
    TextBatch,
    TextLength,
    Tokenizer,
)
from remixer.commands.places import check_picture, check_place
from remixer.commands.progress import watched
from remixer.commands.texts import tokenizer_for


def plan(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="The file to write the plan to, for `remixer remix --plan`.")],
    mixer: Annotated[
        list[str] | None, typer.Option(help="A mixer to choose from, as in long_short(window=64). Usual ones if none.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="The share of the attentions' operations that may be left; 0.5 if no limit is given."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Or so many seconds of all attentions, measured here.")] = None,
    harm: Annotated[float | None, typer.Option(help="Or as much as does no more harm than this.")] = None,
    tokens: Annotated[int, typer.Option(help="Of the sequences that cost is counted for.")] = 4096,
    by_heads: Annotated[bool, typer.Option(help="Let heads of one attention become different things.")] = False,
    transfer_steps: Annotated[int, typer.Option(help="Of transfer, before the mixers are measured.")] = 0,
    loss: Annotated[str, typer.Option(help="What harm is measured in: auto, logits, states or mean.")] = "auto",
    batches: Annotated[int, typer.Option(help="Of the data, that harms are measured on.")] = 4,
    rounds: Annotated[int, typer.Option(help="How often harms are measured anew.")] = 3,
    plot: Plot = None,
    inputs: Inputs = None,
    field: Field = "text",
    length: TextLength = 512,
    batch: TextBatch = 4,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    device: Device = None,
) -> Answer:
    """Choose which attentions become what: those first that harm the outputs least for what they save.

    Example: remixer plan gpt2 --data texts --budget 0.5 --out plan.json --plot pareto.png
    """
    import remixer
    from remixer.export.files import whole

    configs = configs_of(mixer or [])
    check_place(out, "a plan")
    check_picture(plot)
    found = find(model).on(device)
    example = inputs_for(found, inputs, None, None)
    if not isinstance(example, Mapping):
        raise InputsError(f"{model} takes inputs without names, which no file of data can give")
    longest = getattr(getattr(found.model, "config", None), "max_position_embeddings", None)
    length = min(length, longest) if isinstance(longest, int) and longest > 0 else length
    how = Texts(tokenizer_for(found, tokenizer), list(example), length, batch, field)
    held = read_data(data, how)
    if device is not None:
        example = {name: tensor.to(device) for name, tensor in example.items()}
    chosen: dict[str, Any] = {"mixers": configs} if configs else {}
    made = remixer.plan(
        found.model,
        example,
        held,
        **chosen,
        budget=budget,
        seconds=seconds,
        harm=harm,
        length=tokens,
        by_heads=by_heads,
        transfer_steps=transfer_steps,
        loss=loss,
        batches=batches,
        rounds=rounds,
        seed=seed,
        progress=watched(),
    )
    made.save(out)
    if plot is not None:
        with whole(plot) as draft:
            made.plot(draft)
    told = {"out": out, "batches": len(held), "plot": plot, "plan": json.loads(made.to_json())}
    return Answer(Group(made, Text(f"saved to {out}")), told)
