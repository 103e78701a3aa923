"""`remixer run`: a partitioned model on the processes that share it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remixer.commands.answering import Answer


def run(
    parts: Annotated[Path, typer.Argument(help="The folder that a partition was saved to.")],
    input: Annotated[Path, typer.Option(help="Inputs by name: a safetensors file.")],
    output: Annotated[Path, typer.Option(help="Where to write what the model gives: a safetensors file.")],
) -> Answer | None:
    """Run a partitioned model, on as many processes as it was partitioned for.

    Example: torchrun --nproc-per-node 4 -m remixer run PARTS --input x.safetensors --output y.safetensors
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    from remixer.export import PartitionError, load_partition
    from remixer.export.files import whole
    from remixer.export.onnx.names import output_names
    from remixer.rewrite.inputs import tensors_in

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
    named = {name: tensor.contiguous() for name, tensor in zip(output_names(outputs), tensors_in(outputs), strict=True)}
    first = torch.distributed.get_rank() == 0
    if first:
        with whole(output) as draft:
            save_file(named, draft)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    shapes = {name: list(tensor.shape) for name, tensor in named.items()}
    return Answer(None, {"output": str(output), "ranks": model.plan.ranks, "outputs": shapes}) if first else None
