"""Whether pipeline stages, one after the other, give what the whole program gives, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from remixer.mixers.distributed.ranks import ALONE, Ranks, bound
from remixer.passes.errors import StageError
from remixer.passes.shard_sequence import ShardSequence
from remixer.passes.split_stages import Stage
from remixer.passes.stage_loads import sizes_for
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.elsewhere import example_at
from remixer.rewrite.inputs import Call, tensors_in
from remixer.rewrite.modules import weights
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.tolerance import error_and_limit

MARGIN = 10.0
TRIALS = ((2, 12), (1, 7), (3, 2))  # rows and tokens


def prove_stages(program: Program, stages: Sequence[Stage], trials: Sequence[tuple[int, int]] = TRIALS) -> float:
    """Run both on examples in this process, padded in front; the first also backward.

    Args:
        program: before it was split.
        stages: of it.
        trials: rows and tokens.

    Returns:
        The largest difference.

    Raises:
        StageError: they differ, or the program ran on none of the examples.
    """
    worst, tried = 0.0, 0
    for rows, tokens in trials:
        call = padded_example(program, rows, tokens)
        try:
            run(program.graph_module, call)
        except NotRunError:
            continue  # beyond what the model takes
        with torch.set_grad_enabled(not tried), bound(ShardSequence.mesh_dim, Ranks(ALONE, 1)):
            wanted = _outputs_and_gradients(program, call, None)
            found = _outputs_and_gradients(program, call, stages)
        for name, want in wanted.items():
            error, limit = error_and_limit(found[name], want) if name in found else (float("nan"), 0.0)
            if not error <= MARGIN * limit:
                raise StageError(
                    f"in {len(stages)} stages the {name} differs by {error:.2g}, for {rows} rows of {tokens} tokens"
                )
            worst = max(worst, error)
        tried += 1
    if not tried:
        raise StageError("the model itself runs on none of the inputs that its stages were to be tried on")
    return worst


def independent_rows(program: Program) -> tuple[str, ...]:
    """Names of the inputs that have rows, if each row's outputs come from that row alone; else none.

    It is told from the shapes, and tried: three rows at once, padded differently, and one by one.
    """
    placeholders = program.graph.find_nodes(op="placeholder")
    rows = [node for node in placeholders if (shape := shape_of(node)) and shape[0] in program.batch]
    outputs = [node for node in program.graph.output_node().all_input_nodes if shape_of(node) is not None]
    if not rows or not all((shape := shape_of(node)) and shape[0] in program.batch for node in outputs):
        return ()
    call = padded_example(program, 3, 12)
    leaves, structure = pytree.tree_flatten(call)
    try:
        together = tensors_in(run(program.graph_module, call))
        for row in range(3):
            alone = [
                leaf[row : row + 1] if node in rows else leaf for node, leaf in zip(placeholders, leaves, strict=True)
            ]
            apart = tensors_in(run(program.graph_module, pytree.tree_unflatten(alone, structure)))
            for one, all_ in zip(apart, together, strict=True):
                error, limit = error_and_limit(one, all_[row : row + 1])
                if not error <= MARGIN * limit:
                    return ()
    except (NotRunError, RuntimeError):
        return ()
    return tuple(str(node.target) for node in rows)


def padded_example(program: Program, rows: int, tokens: int) -> Call:
    """A program's example at a size, each row padded in front by another number of tokens; one remains at least."""

    def mask(own: Tensor) -> Tensor:
        made = torch.ones_like(own)
        for row in range(made.shape[0]):
            made[row, ..., : (row * made.shape[-1]) // (made.shape[0] + 1)] = 0
        return made

    return example_at(program, sizes_for(program, rows, tokens), mask)


def run_stages(stages: Sequence[Stage], call: Call) -> Any:
    """What the last of them gives, all run in this process."""
    args, kwargs = call
    values: Any = ()
    for stage in stages:
        values = stage.graph_module(tuple(values), *args, **kwargs)
    return values


def _outputs_and_gradients(program: Program, call: Call, stages: Sequence[Stage] | None) -> dict[str, Tensor]:
    args, kwargs = call
    given = program.graph_module(*args, **kwargs) if stages is None else run_stages(stages, call)
    outputs = [each for each in tensors_in(given) if each.is_floating_point()]
    found = {f"output {index}": each.detach() for index, each in enumerate(outputs)}
    trained = {name: each for name, each in weights(program.graph_module).items() if each.requires_grad}
    loss = [each.float().square().mean() for each in outputs if each.requires_grad]
    if loss:
        gradients = torch.autograd.grad(sum(loss[1:], loss[0]), list(trained.values()), allow_unused=True)
        pairs = zip(trained, gradients, strict=True)
        found |= {f"gradient of {name}": grad for name, grad in pairs if grad is not None}
    return found
