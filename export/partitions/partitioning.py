"""`partition`: one model as the same graph on every process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from remixer.export.errors import PartitionError
from remixer.export.examples import example_for_export
from remixer.export.files import publish
from remixer.export.partitions.plan import (
    GRAPH,
    MESH_DIM,
    PLAN,
    WEIGHTS,
    PartitionPlan,
    Strategy,
    digest,
    versions,
)
from remixer.export.reexport import as_module, dynamic_shapes
from remixer.mixers import Softmax
from remixer.mixers.distributed import Choice, Distributed, DistributedMixer, Machine, Task, choose
from remixer.mixers.distributed.cost import SCHEMES, Scheme, refusal
from remixer.mixers.distributed.ranks import Ranks, bound
from remixer.passes.errors import ShardError
from remixer.passes.prove_sharding import prove_sharding
from remixer.passes.shard_sequence import ShardSequence, layout_for
from remixer.passes.sites import sites_of
from remixer.rewrite.agreement import first_line, mode
from remixer.rewrite.program import Program

EXPORT_LENGTH = 300  # nothing looks like a constant then


@dataclass(frozen=True)
class Partition:
    """A model that is spread over processes, and how.

    Attributes:
        program: what each of them runs; in one process it is the whole model.
        plan: how it is spread.
    """

    program: Program
    plan: PartitionPlan

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph that each process runs, the same on all."""
        return self.program.graph_module

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the graph, the weights and the plan; `load_partition` reads them. Files are whole or not there.

        Args:
            folder: made if it doesn't exist; files of an earlier partition are replaced.

        Raises:
            PartitionError: torch.export refuses the graph.
            ValueError: the folder's parent doesn't exist.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if not folder.parent.is_dir():
            raise ValueError(f"there is no folder {folder.parent} to make {folder.name} in")
        source = self.exported()
        weights = {name: tensor.detach().contiguous() for name, tensor in source.state_dict.items()}
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            draft = Path(name)
            save_file(weights, draft / WEIGHTS)
            torch.export.save(_without_weights(source), draft / GRAPH)
            plan = replace(self.plan, fingerprint={file: digest(draft / file) for file in (GRAPH, WEIGHTS)})
            plan.write(draft / PLAN)
            folder.mkdir(exist_ok=True)
            publish(draft, folder, last=PLAN)

    def exported(self) -> ExportedProgram:
        """The graph through torch.export: no process group is needed for it.

        Raises:
            PartitionError: torch.export refuses it.
        """
        program = self.program.copy()
        _plain_outputs(program.graph)
        module = as_module(program)
        with mode(module, training=False):
            call = example_for_export(program, EXPORT_LENGTH)
            shapes = dynamic_shapes(program, module, call)
            try:
                with torch.no_grad(), bound(MESH_DIM, Ranks(MESH_DIM, self.plan.ranks)):
                    return torch.export.export(module, *call, dynamic_shapes=shapes, strict=False)
            except Exception as error:  # torch.export raises errors of many kinds
                raise PartitionError(f"torch.export refuses the partitioned model: {first_line(error)}") from error


def partition(
    model: fx.GraphModule,
    ranks: int,
    *,
    strategy: Strategy = "sequence",
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
            them, and does a part of the heads or rows of each attention; it fits any model.
        scheme: of the attentions, "all_gather", "ring" or "ulysses"; "auto" chooses the one that should be fastest.
        tokens: how long sequences are expected to be: what the choice goes by.
        machine: what each process computes on, likewise; a CPU core, if None.
        strict: raise where an operator needs all tokens, rather than gather them.
        gather: whether outputs come whole on every process, or each gives its own part.

    Returns:
        The partition: run its `graph_module` where torch.distributed is initialised, or `save` it.

    Raises:
        PartitionError: the model can't be spread so, or gives something else when it is.
        ValueError: ranks is less than 1, or there is no such strategy or scheme.
    """
    if ranks < 1:
        raise ValueError(f"ranks counts processes, at least 1, got {ranks}")
    if strategy not in ("sequence", "replicated"):
        raise ValueError(f"strategy must be 'sequence' or 'replicated', got {strategy!r}")
    if scheme not in ("auto", *SCHEMES):
        raise ValueError(f"scheme must be one of auto, {', '.join(SCHEMES)}, got {scheme!r}")
    if not (isinstance(model, fx.GraphModule) and "program" in model.meta):
        raise PartitionError(
            f"partition takes what remixer.remix gave, got {type(model).__name__}. To spread a model as it is, give it "
            'remix(model, "distributed", inputs), which changes no numbers'
        )
    with mode(model, training=False):
        program = Program.of(model)
        if strategy == "replicated":
            spread = _replicated(program)
            choice = Choice("replicated", "it was asked for")
            return Partition(spread, _plan(spread, ranks, strategy, choice, "contiguous", (), None))
        choice = _choice(program, ranks, scheme, tokens, machine or Machine())
        try:
            result = ShardSequence(choice.scheme, MESH_DIM, strict, gather, ranks)(program)
            error = prove_sharding(program, result.program)
        except ShardError as problem:
            raise PartitionError(str(problem)) from problem
        layout = layout_for(program, choice.scheme)
        gathered = tuple(f"{miss.site}: {miss.reason}" for miss in result.misses)
        return Partition(result.program, _plan(program, ranks, strategy, choice, layout, gathered, error))


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


def _plan(
    program: Program,
    ranks: int,
    strategy: Strategy,
    choice: Choice,
    layout: str,
    gathered: tuple[str, ...],
    error: float | None,
) -> PartitionPlan:
    inputs = tuple(str(node.target) for node in program.graph.find_nodes(op="placeholder"))
    return PartitionPlan(
        ranks, strategy, choice.scheme, choice.reason, {MESH_DIM: ranks}, layout, gathered, inputs, error, versions()
    )


def _plain_outputs(graph: fx.Graph) -> None:
    """Dicts in the place of a library's own classes of outputs, which no process needs to know then."""
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.out_spec is None:
        return

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value

    spec = codegen.pytree_info.out_spec
    outputs = plain(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    leaves, dicts = pytree.tree_flatten(outputs)
    if leaves == sorted(leaves):
        graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=dicts)))


def _without_weights(source: ExportedProgram) -> Any:
    """The same graph with one number in the place of each weight: the weights stand in a file of their own."""
    for name, tensor in list(source.state_dict.items()):
        empty = torch.zeros(1, dtype=tensor.dtype)
        trained = isinstance(tensor, nn.Parameter)
        source.state_dict[name] = nn.Parameter(empty, tensor.requires_grad) if trained else empty
    return source
