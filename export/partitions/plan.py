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

Strategy = Literal["sequence", "replicated"]
FORMAT = 1
MESH_DIM = "sequence"
GRAPH, WEIGHTS, PLAN = "graph.pt2", "weights.safetensors", "plan.json"


@dataclass(frozen=True)
class PartitionPlan:
    """How a model is spread over processes.

    Attributes:
        ranks: P, how many processes.
        strategy: "sequence": every process has a part of the tokens; "replicated": all tokens, and a part of the work
            of each attention.
        scheme: of the attentions.
        reason: why that one.
        mesh: sizes of the mesh's dimensions, by name.
        layout: which tokens each process has.
        gathered: what needs all tokens, and gets them.
        inputs: names of the inputs.
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
        found["gathered"], found["inputs"] = tuple(found["gathered"]), tuple(found["inputs"])
        return cls(**found)


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
