"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder that remixer or transformers saved, a .gguf file, a Hugging Face id, or module:function.",
    ),
]
Inputs = Annotated[Path | None, typer.Option(help="Example inputs by name: a safetensors file. Made up if not given.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Rows of inputs that are made up.")]
Length = Annotated[int | None, typer.Option(min=2, help="Tokens of inputs that are made up.")]
Mixers = Annotated[
    list[str] | None,
    typer.Option(
        "--mixer",
        help="A mixer, with options and the sites it is for if need be: 'encoder.*=long_short(window=64)'. The first "
        "pattern that matches a site counts; the mixer none keeps it.",
    ),
]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Let the result take inputs of so many tokens.")]
Device = Annotated[str | None, typer.Option(help="Where to compute, as torch names it: cpu, cuda.")]
Plot = Annotated[Path | None, typer.Option(help="A picture to draw.")]
Seed = Annotated[int, typer.Option(help="Of all random numbers.")]
Data = Annotated[
    Path,
    typer.Option(
        help="Texts: a text file, a .jsonl file, or a folder of either; or batches of inputs: safetensors files."
    ),
]
Field = Annotated[str, typer.Option(help="Of each line of a .jsonl file that holds its text.")]
TextLength = Annotated[int, typer.Option(min=2, help="Tokens of a row of texts; longer texts become several.")]
TextBatch = Annotated[int, typer.Option(min=1, help="Rows of a batch of texts.")]
Tokenizer = Annotated[str | None, typer.Option(help="A folder or id with a tokenizer, if the model came without.")]
