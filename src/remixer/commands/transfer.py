"""`remixer transfer`: a saved model learns from the one that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.artifacts import check_artifact, save
from remixer.commands.data import Texts, read_data
from remixer.commands.models import ModelError, find
from remixer.commands.options import Data, Device, Field, Plot, Seed, TextBatch, TextLength, Tokenizer
from remixer.commands.places import check_picture, check_place
from remixer.commands.progress import watched
from remixer.commands.texts import as_captured, names_of, room_for, tokenizer_for


def transfer(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="What `remixer remix` saved.")],
    data: Data,
    minutes: Annotated[
        float | None, typer.Option(help="Of training in all; 5 if neither this nor steps is given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of training in all.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="attention, outputs, or both, as by default.")] = None,
    loss: Annotated[str, typer.Option(help="How outputs are compared: auto, logits, states or mean.")] = "auto",
    rank: Annotated[int, typer.Option(help="Of the adapters of the second stage; 0 for none.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="A factor on all learning rates.")] = 1.0,
    validation: Annotated[
        Path | None, typer.Option(help="Data that is not trained on; the best on it is kept.")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Measurements on the validation data without progress.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A file to go on from, if the training is cut off.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to save the result; by default where it was.")] = None,
    original: Annotated[bool, typer.Option(help="Save what another `remixer transfer` needs, too.")] = True,
    plot: Plot = None,
    field: Field = "text",
    length: TextLength = 512,
    batch: TextBatch = 4,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    device: Device = None,
) -> Answer:
    """Let the mixers of a saved model learn from the attentions that they replaced.

    Example: remixer transfer small --data texts --minutes 5 --plot losses.png
    """
    import remixer
    from remixer.export.files import whole

    target = Path(folder) if out is None else out
    if out is None and not target.is_dir():
        raise typer.BadParameter(f"{folder} is no folder to save the result to: say --out")
    check_artifact(target)
    check_picture(plot)
    check_place(checkpoint, "a checkpoint")
    found = find(folder)
    if (small := found.remixed) is None:
        raise ModelError(f"{folder} is not what `remixer remix` saved: rewrite it first, and then transfer that")
    if small.original is None:
        raise ModelError(
            f"{folder} was saved without the model that it was made from, so that nothing is there to learn from: "
            "`remixer remix` it again with --original"
        )
    own = tokenizer_for(found, tokenizer)
    how = Texts(own, names_of(small), room_for(small, length), batch, field)
    batches = as_captured(read_data(data, how), small.original)
    held = [] if validation is None else as_captured(read_data(validation, how), small.original)
    found = found.on(device)
    if device is not None:
        small.original.graph_module.to(device)
    report = remixer.transfer(
        small,
        batches,
        minutes=minutes,
        steps=steps,
        stages=stage or ("attention", "outputs"),  # type: ignore[arg-type]
        loss=loss,
        rank=rank,
        learning_rate=learning_rate,
        validation=held,
        patience=patience,
        checkpoint=checkpoint,
        seed=seed,
        progress=watched(),
    )
    for each in (small, small.original.graph_module) if device is not None else ():
        each.to("cpu")  # what both have in common is written once
    save(small, target, found.tokenizer, original=original)
    if plot is not None:
        with whole(plot) as draft:
            report.plot(draft)
    told = {"out": target, "batches": len(batches), "seconds": report.seconds, "stages": report.to_dict(), "plot": plot}
    return Answer(Group(Text(str(report)), Text(f"saved to {target}")), told)
