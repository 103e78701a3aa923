"""`remixer partition`: a rewritten model for several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from remixer.commands.answering import Answer
from remixer.commands.artifacts import check_folder
from remixer.commands.models import PARTITION, find
from remixer.commands.options import Batch, Inputs, Length, Model, Plot
from remixer.commands.places import check_picture
from remixer.commands.progress import doing
from remixer.commands.rewriting import saved_or_rewritten


def partition(
    model: Model,
    ranks: Annotated[int, typer.Option(min=1, help="How many processes there will be.")],
    out: Annotated[Path, typer.Option(help="The folder to save the partition to, for `remixer run`.")],
    strategy: Annotated[
        Literal["sequence", "replicated", "stages"],
        typer.Option(help="Each process has a part of the tokens; of the work of each attention; or of the layers."),
    ] = "sequence",
    stages: Annotated[int | None, typer.Option(min=1, help="Of a pipeline, each of ranks / stages processes.")] = None,
    scheme: Annotated[str, typer.Option(help="Of the attentions: auto, all_gather, ring or ulysses.")] = "auto",
    tokens: Annotated[int, typer.Option(min=1, help="How long sequences are expected to be.")] = 8192,
    strict: Annotated[
        bool, typer.Option(help="Fail where an operator needs all tokens, rather than gather them.")
    ] = False,
    gather: Annotated[bool, typer.Option(help="Give outputs whole on every process.")] = True,
    plot: Plot = None,
    inputs: Inputs = None,
    batch: Batch = None,
    length: Length = None,
) -> Answer:
    """Spread a rewritten model over processes, without changing what it computes.

    A model that isn't rewritten yet is made ready with exact attentions.

    Example: remixer partition small --ranks 4 --out parts --plot volumes.png
    """
    from remixer.export.files import whole
    from remixer.export.partitions import volume_figure, volumes
    from remixer.export.partitions.partitioning import partition as spread
    from remixer.export.partitions.plan import MESH_DIM
    from remixer.rewrite.program import Program

    check_folder(out, PARTITION)
    check_picture(plot)
    small = saved_or_rewritten(find(model), None, "distributed", inputs, batch, length)
    with doing("spreading and proving"):
        parts = spread(
            small,
            ranks,
            strategy=strategy,
            stages=stages,
            scheme=scheme,
            tokens=tokens,
            strict=strict,
            gather=gather,
        )
        parts.save(out)
    program = Program.of(small)
    sent = volumes.of_attentions(program, parts.plan.mesh.get(MESH_DIM, 1), tokens)
    crossing = volumes.of_stages(parts, tokens)
    if plot is not None:
        with whole(plot) as draft:
            volume_figure.draw(program, parts, tokens, draft)
    plan = parts.plan
    head = f"{plan.ranks} processes, {plan.strategy}, attentions by {plan.scheme}: {plan.reason}"
    lines = [head, *plan.gathered, f"saved to {out}"]
    told = {
        "out": out,
        "plot": plot,
        "plan": plan.to_dict(),
        "sent_bytes": sent,
        "stage_bytes": crossing,
        "tokens": tokens,
    }
    return Answer(Group(_table(sent, crossing, tokens), Text("\n".join(lines))), told)


def _table(sent: dict[str, int], crossing: list[int], tokens: int) -> Table:
    table = Table(title=f"MiB that one process sends for {tokens:,} tokens of one row", show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column("MiB", justify="right")
    for scheme, volume in sent.items():
        table.add_row(f"all attentions by {scheme}", f"{volume / 2**20:,.2f}")
    for index, volume in enumerate(crossing, 1):
        table.add_row(f"from stage {index - 1} to stage {index}", f"{volume / 2**20:,.2f}")
    return table
