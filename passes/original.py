"""The model that a rewritten one was made from, as a program in which its attentions are sites."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Self

from remixer.passes.errors import ExtendError
from remixer.passes.extend_positions import ExtendPositions
from remixer.passes.sweep import Sweep
from remixer.rewrite.program import Program


class Original:
    """Held by a rewritten model, in eval. Copies of that share it, and it isn't saved along.

    Args:
        recognised: before any attention was replaced; its weights are those of the model that was given, not copies.
        longer: lets it take the longer inputs that the rewritten model takes, where that changes nothing else.
    """

    def __init__(self, recognised: Program, longer: ExtendPositions | None = None) -> None:
        self._recognised, self._longer = recognised, longer

    @functools.cached_property
    def program(self) -> Program:
        """Every attention that was understood is a site of the canonical operator, and nothing is left beside it."""
        program = Sweep()(self._recognised).program
        if self._longer is not None:
            with contextlib.suppress(ExtendError):  # what ends in it may be gone from the rewritten model
                program = self._longer(program).program
        program.graph_module.eval()
        return program

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_lost, ())


def _lost() -> None:
    """What is left of it in a pickle."""
