"""What a partitioned model says of itself: `plan.json`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remixer.export.errors import PartitionError
from remixer.export.partitions.letters import value_of
from remixer.export.typed import TypedError, dtype_of, parsed, read_text, typed

Strategy = Literal["sequence", "replicated", "stages"]
FORMAT = 3
STAGES, MESH_DIM = "stages", "sequence"
PLAN = "plan.json"
OURS = re.compile(r"((graph|stage\d{1,6})\.[0-9a-f]{12}\.json)|((weights|stage\d{1,6})\.[0-9a-f]{12}\.safetensors)")


@dataclass(frozen=True)
class ActivationPlan:
    """What one stage sends to the next.

    Attributes:
        name: of the node that makes it.
        shape: each size, in the letters of `PartitionPlan.sizes`.
        spread: the dimension along which each process has its own tokens only, or None.
        dtype: of its numbers, as torch names it.
        bytes: of all tokens, in the same letters.
    """

    name: str
    shape: tuple[str, ...]
    spread: int | None
    dtype: str
    bytes: str


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage.

    Attributes:
        receives: what the stage before sends.
        flops: of one row of as many tokens as the stages were made for.
        bytes: of its weights.
        tied: weights that other stages have too, by their name here: their name in common. Their gradient is the sum
            over these stages.
    """

    receives: tuple[ActivationPlan, ...]
    flops: int
    bytes: int
    tied: dict[str, str]


@dataclass(frozen=True)
class PartitionPlan:
    """How a model is spread over processes.

    Attributes:
        ranks: P, how many processes.
        strategy: "sequence": every process has a part of the tokens; "replicated": all tokens, and a part of the work
            of each attention; "stages": all tokens, and a part of the layers.
        scheme: of the attentions.
        reason: why that one.
        mesh: sizes of the mesh's dimensions, by name.
        layout: which tokens each process has.
        gathered: what needs all tokens, and gets them.
        inputs: names of the inputs.
        sizes: the input and the dimension that each letter is the size of.
        tokens: T in these letters, or "" if tokens are not spread.
        rows: inputs that microbatches have some rows of; empty if the rows can't be computed apart.
        stages: the pipeline's, if there are several.
        error: the largest difference found when all processes were played in one, or None if it was not tried.
        versions: of what made it.
        fingerprint: of the graph and the weights, by file.
        format: of these files.
    """

    ranks: int
    strategy: Strategy
    scheme: str
    reason: str
    mesh: dict[str, int]
    layout: str
    gathered: tuple[str, ...]
    inputs: tuple[str, ...]
    error: float | None
    versions: dict[str, str]
    sizes: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    tokens: str = ""
    rows: tuple[str, ...] = ()
    stages: tuple[StagePlan, ...] = ()
    fingerprint: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return dataclasses.asdict(self)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> PartitionPlan:
        """Of a folder that `Partition.save` wrote.

        Raises:
            PartitionError: there is none, or it can't be read.
        """
        path = folder / PLAN
        try:
            found = parsed(read_text(path))
            told = found.get("format") if isinstance(found, dict) else None
            if told != FORMAT:
                raise PartitionError(
                    f"{path} is of format {told!r:.40}, this remixer reads {FORMAT}: partition the model again"
                )
            plan = typed(cls, found)
            plan.check()
        except (OSError, TypedError) as error:
            raise PartitionError(f"{folder} holds no partitioned model: {path}: {error}") from error
        return plan

    def check(self) -> None:
        """Raise TypedError where a field has a value that no plan has."""
        sizes = dict.fromkeys(self.sizes, 2)
        for stage in self.stages:
            for each in stage.receives:
                dtype_of(each.dtype)
                for size in each.shape:
                    value_of(size, sizes)
        if self.tokens:
            value_of(self.tokens, sizes)
        if self.ranks < 1 or math.prod(self.mesh.values()) != self.ranks or min(self.mesh.values(), default=0) < 1:
            raise TypedError(f"a mesh of {self.mesh} is none of {self.ranks} processes")
        if not set(self.mesh) <= {STAGES, MESH_DIM} or len(self.stages) not in (0, self.mesh.get(STAGES, 0)):
            raise TypedError(f"a mesh of {self.mesh} doesn't fit {len(self.stages)} stages")
        if not {"remixer", "torch"} <= self.versions.keys():
            raise TypedError("it doesn't say which remixer and torch wrote it")
        for number in range(max(1, len(self.stages))):
            self.files(number)

    def files(self, stage: int) -> tuple[str, str]:
        """Names of the files with the graph and the weights of a stage: they tell their content.

        Raises:
            TypedError: the plan has none of them.
        """
        graph, weights = (self._named(*kind.split(".")) for kind in self.kinds(stage))
        return graph, weights

    def kinds(self, stage: int) -> tuple[str, str]:
        """These names without what tells the content."""
        return (
            (f"stage{stage}.json", f"stage{stage}.safetensors")
            if self.stages
            else ("graph.json", "weights.safetensors")
        )

    def _named(self, start: str, end: str) -> str:
        for name in self.fingerprint:
            if OURS.fullmatch(name) and name.startswith(f"{start}.") and name.endswith(f".{end}"):
                return name
        raise TypedError(f"it names no file {start}.*.{end}")
