"""How many bytes the processes of a partition send: by their attentions, and from stage to stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
