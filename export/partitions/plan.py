"""What a partitioned model says of itself: `plan.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from remixer.export.errors import PartitionError

Strategy = Literal["sequence", "replicated", "stages"]
FORMAT = 2
STAGES, MESH_DIM = "stages", "sequence"
GRAPH, WEIGHTS, PLAN = "graph.pt2", "weights.safetensors", "plan.json"


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
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PartitionError(f"{folder} holds no partitioned model: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or found.get("format") != FORMAT or found.keys() != names:
            told = found.get("format") if isinstance(found, dict) else None
            raise PartitionError(f"{path} is of format {told}, this remixer reads {FORMAT}: partition the model again")
        for name in ("gathered", "inputs", "rows"):
            found[name] = tuple(found[name])
        found["sizes"] = {letter: tuple(where) for letter, where in found["sizes"].items()}
        found["stages"] = tuple(map(_stage, found["stages"]))
        return cls(**found)

    def files(self, stage: int) -> tuple[str, str]:
        """Names of the files with the graph and the weights of a stage."""
        return (f"stage{stage}.pt2", f"stage{stage}.safetensors") if self.stages else (GRAPH, WEIGHTS)


def _stage(found: dict[str, Any]) -> StagePlan:
    receives = (ActivationPlan(**{**each, "shape": tuple(each["shape"])}) for each in found["receives"])
    return StagePlan(**{**found, "receives": tuple(receives)})


def versions() -> dict[str, str]:
    """Of remixer and torch, as artifacts note them."""
    return {"remixer": metadata.version("remixer"), "torch": torch.__version__.split("+")[0]}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()
