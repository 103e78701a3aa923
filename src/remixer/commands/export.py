"""`remixer export`: a rewritten model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.artifacts import check_folder
from remixer.commands.models import find
from remixer.commands.options import Batch, Inputs, Length, Mixers, Model
from remixer.commands.places import check_place
from remixer.commands.progress import doing
from remixer.commands.rewriting import saved_or_rewritten


def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(help="The file to write; with --decoder, the folder.")],
    provider: Annotated[Literal["cpu", "cuda"], typer.Option(help="What it is to run on.")] = "cpu",
    precision: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="float16 for cuda only, int8 for cpu only.")
    ] = "float32",
    decoder: Annotated[bool, typer.Option(help="Two graphs that generate: one for a prompt, one for a token.")] = False,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Of a decoder: how many there may be in all, prompt included.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="How far outputs may be from torch's, relative to the largest number.")
    ] = None,
    mixer: Mixers = None,
    inputs: Inputs = None,
    batch: Batch = None,
    length: Length = None,
) -> Answer:
    """Write a rewritten model as ONNX, verified in onnxruntime before it is there.

    A model that isn't rewritten yet is rewritten with --mixer, or else as it is, with no number changed.

    Example: remixer export small --onnx small.onnx
    """
    from remixer.export import to_onnx, to_onnx_decoder

    if decoder and tokens is None:
        raise typer.BadParameter("--decoder needs --tokens: how many tokens there may be, prompt included")
    if tokens is not None and not decoder:
        raise typer.BadParameter("--tokens is for --decoder: other graphs take any length")
    if decoder:
        check_folder(onnx, "decoder.json")
    else:
        check_place(onnx, "an ONNX file")
    options: dict[str, Any] = {"provider": provider, "precision": precision}
    if tolerance is not None:
        options["tolerance"] = tolerance
    small = saved_or_rewritten(find(model), mixer, "softmax", inputs, batch, length)
    with doing("exporting and verifying"):
        if tokens is not None:
            manifest = to_onnx_decoder(small, onnx, length=tokens, **options).to_dict()
        else:
            manifest = to_onnx(small, onnx, **options).to_dict()
    told = (
        f"wrote {onnx}: {sum(manifest['nodes'].values()):,} nodes in {precision} for {provider}, on "
        f"{manifest['trials']} inputs within {manifest['error']:.1e} of torch, {manifest['tolerance']:.1e} allowed"
    )
    if manifest["effect"] is not None:
        told += f"\nwhat {precision} does to the outputs: {manifest['effect']}"
    return Answer(Text(told), {"out": onnx, "manifest": manifest})
