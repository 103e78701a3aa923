"""The command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from remixer.export import PartitionError, load_partition
from remixer.export.files import publish
from remixer.export.onnx.names import output_names
from remixer.rewrite.inputs import tensors_in

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Swap the attention of a pretrained Transformer for an efficient token mixer."""


@app.command()
def run(
    parts: Annotated[Path, typer.Argument(help="The folder that a partition was saved to.")],
    input: Annotated[Path, typer.Option(help="Inputs by name: a safetensors file.")],
    output: Annotated[Path, typer.Option(help="Where to write what the model gives: a safetensors file.")],
) -> None:
    """Run a partitioned model, on as many processes as it was partitioned for.

    torchrun --nproc-per-node 4 -m remixer run parts --input x.safetensors --output y.safetensors
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if not output.parent.is_dir():
            raise PartitionError(f"there is no folder {output.parent} to write {output.name} to")
        model = load_partition(parts)
        try:
            given = load_file(input, device=str(next(model.parameters()).device))
        except (OSError, SafetensorError) as error:
            raise PartitionError(f"cannot read {input}: {error}") from error
        missing = [name for name in model.plan.inputs if name not in given]
        if missing or len(given) > len(model.plan.inputs):
            found, wanted = ", ".join(given), ", ".join(model.plan.inputs)
            raise PartitionError(f"{input} holds {found or 'nothing'}; the model takes {wanted}")
        with torch.no_grad():
            outputs = model(**given)
        if torch.distributed.get_rank() == 0:
            _write(outputs, output)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except PartitionError as error:
        Console(stderr=True, soft_wrap=True).print(f"remixer run: {error}", style="red", highlight=False)
        sys.exit(1)


def _write(outputs: object, path: Path) -> None:
    """All tensors of a model's outputs by name, the file whole or not there."""
    import tempfile

    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        named = zip(output_names(outputs), tensors_in(outputs), strict=True)
        save_file({name: tensor.contiguous() for name, tensor in named}, Path(folder) / path.name)
        publish(Path(folder), path.parent, last=path.name)
