"""What the processes of a partition send, as a picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from remixer.export.partitions.plan import MESH_DIM
from remixer.export.partitions.volumes import of_attentions, of_stages
from remixer.mixers.distributed.cost import SCHEMES

if TYPE_CHECKING:
    from remixer.export.partitions.partitioning import Partition
    from remixer.rewrite.program import Program

RANKS = (2, 4, 8, 16)
DASHES = dict(zip(SCHEMES, ("-", "--", ":", "-."), strict=True))  # some lie on one another


def draw(program: Program, partition: Partition, tokens: int, path: str | os.PathLike[str]) -> None:
    """Draw to a file what each process sends for the attentions, over their number, and what goes from stage to stage.

    Args:
        program: of the model, before it was partitioned.
        partition: of it; it is marked.
        tokens: of one row.
        path: of the file; its ending says the format.
    """
    from matplotlib.figure import Figure

    size = partition.plan.mesh.get(MESH_DIM, 1)
    over = sorted({*RANKS, max(2, size), 2 * max(2, size)})
    volumes = {ranks: of_attentions(program, ranks, tokens) for ranks in over}
    between = of_stages(partition, tokens)
    figure = Figure(figsize=(12 if between else 6, 4), layout="constrained")
    left, *right = figure.subplots(1, 2 if between else 1, squeeze=False)[0]
    _attentions(left, volumes, size, partition.plan.scheme, tokens)
    for axes in right:
        names = [f"{index} to {index + 1}" for index in range(len(between))]
        axes.bar(names, [each / 2**20 for each in between], width=0.4)
        axes.set(xlabel="stages", ylabel=f"MiB for {tokens:,} tokens", title="activations")
    figure.savefig(path, dpi=120)


def _attentions(axes: Any, volumes: dict[int, dict[str, int]], size: int, chosen: str, tokens: int) -> None:
    for scheme, dashes in DASHES.items():
        points = [(ranks, each[scheme] / 2**20) for ranks, each in volumes.items() if scheme in each]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", linestyle=dashes, label=scheme)
    if chosen in volumes.get(size, {}):
        here = volumes[size][chosen] / 2**20
        axes.plot([size], [here], marker="*", markersize=16, linestyle="", color="black", label="this partition")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(volumes), [str(ranks) for ranks in volumes])
    axes.set_ylim(bottom=0)
    axes.set(xlabel="processes", ylabel=f"MiB sent by each for {tokens:,} tokens", title="all attentions")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
