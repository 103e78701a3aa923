"""What an evaluation found, for all models side by side."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType

from remixer.evaluation.costs import Cost
from remixer.evaluation.embedded import Embeddings
from remixer.evaluation.generated import Generation
from remixer.evaluation.losses import Perplexity
from remixer.evaluation.next_tokens import Agreement
from remixer.evaluation.planted import Needle


@dataclass(frozen=True)
class Scores:
    """Of one model; None and empty is what wasn't asked for, and what compares the teacher with itself."""

    perplexity: Perplexity | None = None
    agreement: Agreement | None = None
    generation: Generation | None = None
    embeddings: Embeddings | None = None
    needles: tuple[Needle, ...] = ()
    costs: tuple[Cost, ...] = ()
    tasks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Several models, the first of which is the teacher of the others.

    Attributes:
        models: what was found, by the names that were given.
        seed: of the secrets.
        threads: of torch, while it was measured.
        versions: of remixer and torch.
    """

    models: dict[str, Scores]
    seed: int
    threads: int
    versions: dict[str, str]

    @property
    def only_perplexity(self) -> bool:
        """Whether nothing was measured that would show the damage that perplexity hides."""
        scores = list(self.models.values())
        telling = any(one.generation or one.embeddings or one.needles or one.tasks for one in scores)
        return any(one.perplexity for one in scores) and not telling

    def to_json(self, indent: int | None = 2) -> str:
        """Everything, as JSON text."""
        plain = asdict(self)
        for scores in plain["models"].values():
            scores["tasks"] = dict(scores["tasks"])
        return json.dumps(plain, indent=indent)

    def plot(self, path: str | Path) -> Path:
        """One figure: perplexity by position, needle by distance, agreement by step, seconds and memory by length.

        Args:
            path: of the file; its ending says the format.

        Raises:
            EvaluationError: nothing that was measured has a curve, or matplotlib isn't installed.
        """
        from remixer.evaluation.figure import draw

        return draw(self, Path(path))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=150, color_system=None, force_terminal=False)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        """The table for a terminal."""
        from remixer.evaluation.table import remarks, table_of

        return Group(table_of(self.models), *remarks(self))
