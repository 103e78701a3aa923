"""What the plan says of pipeline stages."""

from __future__ import annotations

from collections import Counter
from typing import Any

import sympy

from remixer.export.errors import PartitionError
from remixer.export.partitions.plan import ActivationPlan, StagePlan, Strategy
from remixer.passes.prove_stages import independent_rows
from remixer.passes.sharded_sites import lengths_in
from remixer.passes.split_stages import Crossing, Stage
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.sizes import letters_of, written


def staged(program: Program, stages: tuple[Stage, ...], strategy: Strategy) -> dict[str, Any]:
    """The fields of a plan that are about stages.

    Args:
        program: before its tokens were spread.
        stages: of it.
        strategy: inside each stage.

    Raises:
        PartitionError: an activation's shape can't be told from those of the inputs, or tokens of two lengths are
            spread.
    """
    lengths: tuple[sympy.Expr, ...] = lengths_in(program) if strategy == "sequence" else ()
    if len(lengths) > 1:
        raise PartitionError(
            f"cannot split into stages: tokens of {len(lengths)} lengths are spread, of which a stage is told one. "
            "What to do: leave stages out, or give strategy='stages'"
        )
    letters = letters_of(program)
    sizes: dict[str, tuple[str, int]] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        for dim, size in enumerate(shape_of(node) or ()):
            if size in letters:
                sizes.setdefault(letters[size], (str(node.target), dim))

    def activation(crossing: Crossing) -> ActivationPlan:
        shape = tuple(written(size, letters) for size in crossing.shape)
        if not {letters.get(each, "") for size in crossing.shape for each in size.free_symbols} <= sizes.keys():
            raise PartitionError(
                f"cannot split into stages: {crossing.name}, of shape ({', '.join(shape)}), would go from one to the "
                "next, and no input has the sizes that it is made of"
            )
        dtype = str(crossing.dtype).removeprefix("torch.")
        return ActivationPlan(crossing.name, shape, crossing.spread, dtype, written(crossing.bytes, letters))

    holders = Counter(name for stage in stages for name in set(stage.weights.values()))
    plans = tuple(
        StagePlan(
            tuple(map(activation, stage.receives)),
            stage.flops,
            stage.bytes,
            {name: common for name, common in stage.weights.items() if holders[common] > 1},
        )
        for stage in stages
    )
    return {
        "sizes": sizes,
        "tokens": "".join(written(length, letters) for length in lengths),
        "rows": independent_rows(program),
        "stages": plans,
    }
