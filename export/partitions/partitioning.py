"""`partition`: one model as the same graph on every process."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx
from torch.export import ExportedProgram

from remixer.export.artifacts.tensors import write_tensors
from remixer.export.errors import PartitionError
from remixer.export.files import digest, publish
from remixer.export.partitions.graphs import exported_stage, exported_whole
from remixer.export.partitions.plan import MESH_DIM, OURS, PLAN, STAGES, PartitionPlan, Strategy
from remixer.export.partitions.staging import staged
from remixer.export.partitions.stored import write_graph
from remixer.export.typed import TypedError
from remixer.export.versions import versions
from remixer.mixers import Softmax
from remixer.mixers.distributed import Choice, Distributed, DistributedMixer, Machine, Task, choose
from remixer.mixers.distributed.cost import SCHEMES, Scheme, refusal
from remixer.mixers.distributed.ranks import ALONE, Ranks, bound
from remixer.passes.errors import ShardError, StageError
from remixer.passes.prove_sharding import prove_sharding
from remixer.passes.prove_stages import prove_stages
from remixer.passes.shard_sequence import ShardSequence
from remixer.passes.sharded_sites import layout_for
from remixer.passes.sites import sites_of
from remixer.passes.split_stages import Stage, split_stages
from remixer.rewrite.agreement import mode
from remixer.rewrite.program import Program


@dataclass(frozen=True)
class Partition:
    """A model that is spread over processes, and how.

    Attributes:
        program: what all stages compute; in one process it is the whole model.
        plan: how it is spread.
        stages: the pipeline's, if there are several.
    """

    program: Program
    plan: PartitionPlan
    stages: tuple[Stage, ...] = ()

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph that each process runs, the same on all; of all stages, if there are several."""
        return self.program.graph_module

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the graphs, the weights and the plan; `load_partition` reads them.

        A save that is cut off leaves what was in the folder before: the plan, which names the files, comes last.

        Args:
            folder: made if it doesn't exist; files of an earlier partition are replaced.

        Raises:
            PartitionError: torch.export refuses the graph, or it holds what no file may.
            ValueError: the folder's parent doesn't exist.
        """
        folder = Path(folder)
        if not folder.parent.is_dir():
            raise ValueError(f"there is no folder {folder.parent} to make {folder.name} in")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            draft = Path(name)
            prints: dict[str, str] = {}
            for stage in range(max(1, len(self.stages))):
                graph, weights = self.plan.kinds(stage)
                try:
                    write_tensors(draft / weights, write_graph(self.exported(stage), draft / graph))
                except TypedError as error:
                    raise PartitionError(f"can't save this partition: {error}") from error
                for kind in (graph, weights):
                    found = digest(draft / kind)
                    start, end = kind.split(".")
                    named = f"{start}.{found[:12]}.{end}"  # of its content: it replaces none of an earlier partition
                    (draft / kind).rename(draft / named)
                    prints[named] = found
            replace(self.plan, fingerprint=prints).write(draft / PLAN)
            folder.mkdir(exist_ok=True)
            publish(draft, folder, last=PLAN)
        for file in folder.iterdir():
            if OURS.fullmatch(file.name) and file.name not in prints:
                file.unlink()  # of an earlier partition

    def exported(self, stage: int = 0) -> ExportedProgram:
        """The graph of a stage through torch.export: no process group is needed for it.

        Raises:
            PartitionError: torch.export refuses it.
        """
        if self.stages:
            return exported_stage(self.program, stage, self.stages[stage].graph_module, self.plan)
        return exported_whole(self.program, self.plan)


def partition(
    model: fx.GraphModule,
    ranks: int,
    *,
    strategy: Strategy = "sequence",
    stages: int | None = None,
    scheme: str = "auto",
    tokens: int = 8192,
    machine: Machine | None = None,
    strict: bool = False,
    gather: bool = True,
) -> Partition:
    """Spread a rewritten model over processes, without changing what it computes.

    Args:
        model: what `remixer.remix` gave, with "distributed" or "softmax" for its attentions.
        ranks: how many processes there will be.
        strategy: "sequence": every process runs the whole graph on its part of the tokens. "replicated": on all of
            them, and does a part of the heads or rows of each attention; it fits any model. "stages": every process
            runs a part of the layers, one process after the other.
        stages: of a pipeline, each with `ranks / stages` processes that share its work as the strategy says. By default
            one, and with the strategy "stages" one for each process.
        scheme: of the attentions, "all_gather", "ring" or "ulysses"; "auto" chooses the one that should be fastest.
        tokens: how long sequences are expected to be: what the choice goes by.
        machine: what each process computes on, likewise; a CPU core, if None.
        strict: raise where an operator needs all tokens, rather than gather them.
        gather: whether outputs come whole on every process, or each gives its own part.

    Returns:
        The partition: `save` it; or, of one stage, run its `graph_module` where torch.distributed is initialised.

    Raises:
        PartitionError: the model can't be spread so, or gives something else when it is.
        ValueError: ranks is less than 1, or no multiple of the stages; or there is no such strategy or scheme.
    """
    if ranks < 1:
        raise ValueError(f"ranks counts processes, at least 1, got {ranks}")
    if strategy not in ("sequence", "replicated", "stages"):
        raise ValueError(f"strategy must be 'sequence', 'replicated' or 'stages', got {strategy!r}")
    if scheme not in ("auto", *SCHEMES):
        raise ValueError(f"scheme must be one of auto, {', '.join(SCHEMES)}, got {scheme!r}")
    if not (isinstance(model, fx.GraphModule) and "program" in model.meta):
        raise PartitionError(
            f"partition takes what remixer.remix gave, got {type(model).__name__}. To spread a model as it is, give it "
            'remix(model, "distributed", inputs), which changes no numbers'
        )
    mesh = _mesh(ranks, strategy, stages)
    size = mesh.get(MESH_DIM, 1)
    with mode(model, training=False), bound(MESH_DIM, Ranks(ALONE, 1)):
        program = Program.of(model)
        inputs = tuple(str(node.target) for node in program.graph.find_nodes(op="placeholder"))
        asked = ("none", "each process has all tokens") if strategy == "stages" else ("replicated", "it was asked for")
        plan = PartitionPlan(ranks, strategy, *asked, mesh, "contiguous", (), inputs, None, versions())
        try:
            if strategy == "sequence":
                choice = _choice(program, size, scheme, tokens, machine or Machine())
                result = ShardSequence(choice.scheme, MESH_DIM, strict, gather, size)(program)
                error = prove_sharding(program, result.program)
                layout = layout_for(program, choice.scheme)
                gathered = tuple(f"{miss.site}: {miss.reason}" for miss in result.misses)
                plan = replace(
                    plan, scheme=choice.scheme, reason=choice.reason, layout=layout, gathered=gathered, error=error
                )
                spread = result.program
            else:
                spread = _replicated(program)
            if mesh.get(STAGES, 1) == 1:
                return Partition(spread, plan)
            split = split_stages(spread, mesh[STAGES], tokens)
            error = max(plan.error or 0.0, prove_stages(program, split))
        except (ShardError, StageError) as problem:
            raise PartitionError(str(problem)) from problem
        return Partition(spread, replace(plan, error=error, **staged(program, split, strategy)), split)


def _mesh(ranks: int, strategy: Strategy, stages: int | None) -> dict[str, int]:
    """Sizes of the mesh's dimensions."""
    if strategy == "stages":
        if stages not in (None, ranks):
            raise ValueError(
                f"with strategy='stages' each of the {ranks} processes is one stage, got stages={stages}. For several "
                "processes in each stage give another strategy"
            )
        return {STAGES: ranks}
    stages = 1 if stages is None else stages
    if stages < 1 or ranks % stages:
        raise ValueError(f"{ranks} processes can't be spread evenly over stages={stages}")
    return {MESH_DIM: ranks} if stages == 1 else {STAGES: stages, MESH_DIM: ranks // stages}


def _choice(program: Program, ranks: int, scheme: str, tokens: int, machine: Machine) -> Choice:
    """The scheme of all attentions: the costliest one decides."""
    sites = [site for site in sites_of(program) if isinstance(site.mixer, (Softmax, DistributedMixer))]
    tasks = [Task(site.spec, 1, tokens, tokens, ranks, site.spec.dtype.itemsize) for site in sites]
    if not tasks:
        return Choice("all_gather", "no attention is exact")
    if scheme != "auto":
        one: Scheme = scheme  # type: ignore[assignment]
        if one == "replicated":
            raise PartitionError("scheme 'replicated' holds all tokens: give strategy='replicated' instead")
        for task, site in zip(tasks, sites, strict=True):
            if why := refusal(one, task):
                raise PartitionError(f"cannot spread the attention at {site.name} by {one!r}: {why}")
        return Choice(one, "it was asked for")
    refused = {each: why for each in SCHEMES for task in tasks if (why := refusal(each, task))}
    return choose(max(tasks, key=lambda task: task.spec.heads * task.spec.head_dim), machine, refused=refused)


def _replicated(program: Program) -> Program:
    """All attentions by a part of their heads or rows."""
    spread = program.copy()
    for site in sites_of(spread):
        if isinstance(site.mixer, (Softmax, DistributedMixer)):
            mixer = DistributedMixer(site.spec, Distributed("replicated", MESH_DIM)).eval()
            spread.graph_module.set_submodule(str(site.node.target), mixer)
    return spread
