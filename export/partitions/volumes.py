"""How many bytes the processes of a partition send: by their attentions, and from stage to stage."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from remixer.export.partitions.plan import MESH_DIM
from remixer.mixers import Softmax
from remixer.mixers.distributed import DistributedMixer, Task, cost
from remixer.mixers.distributed.cost import SCHEMES, Scheme, refusal
from remixer.passes.sites import sites_of

if TYPE_CHECKING:
    from remixer.export.partitions.partitioning import Partition
    from remixer.rewrite.program import Program


def of_attentions(program: Program, ranks: int, tokens: int) -> dict[str, int]:
    """Bytes that each process sends in the forward pass of all exact attentions, of one row, by scheme.

    Schemes that one of them can't take are left out.

    Args:
        program: of the model, before it is partitioned.
        ranks: processes that share the tokens.
        tokens: of the row.
    """
    specs = [site.spec for site in sites_of(program) if isinstance(site.mixer, (Softmax, DistributedMixer))]
    tasks = [Task(spec, 1, tokens, tokens, ranks, spec.dtype.itemsize) for spec in specs]
    able: list[Scheme] = [one for one in SCHEMES if not any(refusal(one, task) for task in tasks)]
    return {scheme: sum(cost(scheme, task).sent for task in tasks) for scheme in able} if tasks else {}


def of_stages(partition: Partition, tokens: int) -> list[int]:
    """Bytes of activations that each stage but the first is sent, of one row of so many tokens."""
    program = partition.program
    sizes = dict.fromkeys(program.batch, 1) | dict.fromkeys(program.length, tokens)
    return [sum(int(crossing.bytes.subs(sizes)) for crossing in stage.receives) for stage in partition.stages[1:]]


def draw(program: Program, partition: Partition, tokens: int, path: str | os.PathLike[str]) -> None:
    """Draw both to a file: attentions over the number of processes, by scheme, the partition's marked; and stages.

    Args:
        program: of the model, before it was partitioned.
        partition: of it.
        tokens: of one row.
        path: of the file; its ending says the format.
    """
    from matplotlib.figure import Figure

    size = partition.plan.mesh.get(MESH_DIM, 1)
    over = sorted({2, 4, 8, 16, max(2, size), 2 * max(2, size)})
    volumes = {ranks: of_attentions(program, ranks, tokens) for ranks in over}
    schemes = [scheme for scheme in SCHEMES if any(scheme in each for each in volumes.values())]
    between = of_stages(partition, tokens)
    panels = int(bool(schemes)) + int(bool(between))
    figure = Figure(figsize=(6 * max(1, panels), 4), layout="constrained")
    axes = list(figure.subplots(1, max(1, panels), squeeze=False)[0])
    if schemes:
        axis = axes.pop(0)
        for scheme in schemes:
            points = [(ranks, each[scheme] / 2**20) for ranks, each in volumes.items() if scheme in each]
            axis.plot(*zip(*points, strict=True), marker="o", label=scheme)
        here = volumes.get(size, {}).get(partition.plan.scheme)
        if here is not None:
            axis.plot(
                [size], [here / 2**20], marker="*", markersize=16, linestyle="", color="black", label="this partition"
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(xlabel="processes", ylabel=f"MiB sent by each for {tokens:,} tokens", title="all attentions")
        axis.grid(alpha=0.3)
        axis.legend()
    if between:
        axis = axes.pop(0)
        axis.bar([f"{index} to {index + 1}" for index in range(len(between))], [each / 2**20 for each in between])
        axis.set(xlabel="stages", ylabel=f"MiB for {tokens:,} tokens", title="activations")
    elif not schemes:
        axes[0].set_title("nothing is sent")
    figure.savefig(path, dpi=120)
