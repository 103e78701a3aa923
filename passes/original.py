"""The model that a rewritten one was made from, as a program in which its attentions are sites."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Self

from remixer.passes.errors import ExtendError
from remixer.passes.extend_positions import ExtendPositions
from remixer.passes.recognise_attention import RULES
from remixer.passes.select import Selection
from remixer.passes.sites import named_nodes, sites_of
from remixer.passes.substitute import Substitute
from remixer.passes.sweep import Sweep
from remixer.rewrite.program import Program
from remixer.rewrite.rule import Rule


class Original:
    """Held by a rewritten model, in eval. Copies of that share it, and it isn't saved along.

    Args:
        recognised: before any attention was replaced; its weights are those of the model that was given, not copies.
        extend: how the rewritten model was made to take longer inputs, or None.
        rules: by which its attentions were recognised.

    Attributes:
        extend: as given.
        rules: as given.
    """

    def __init__(
        self, recognised: Program, extend: ExtendPositions | None = None, rules: tuple[Rule, ...] = RULES
    ) -> None:
        self._recognised, self.extend, self.rules = recognised, extend, rules

    @functools.cached_property
    def swept(self) -> Program:
        """Every attention that was understood is a site of the canonical operator, and nothing is left beside it."""
        program = Sweep()(self._recognised).program
        program.graph_module.eval()
        return program

    @functools.cached_property
    def program(self) -> Program:
        """The same; it takes the longer inputs that the rewritten model takes, where that changes nothing else."""
        if self.extend is None:
            return self.swept
        program = self.swept
        with contextlib.suppress(ExtendError):  # what ends in it may be gone from the rewritten model
            program = ExtendPositions(self.extend.max_length)(program).program
        program.graph_module.eval()
        return program

    @property
    def as_it_was(self) -> Program:
        """Every attention is written as it was before it was understood, masks included. Made anew at every call.

        Where it was read from an artifact, that is gone, and attentions stay sites.
        """
        names = named_nodes(self._recognised.graph)
        if any(site.record.original not in names for site in sites_of(self._recognised)):
            return self.swept
        return Sweep()(Substitute(Selection(()))(self._recognised).program).program

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_lost, ())


def _lost() -> None:
    """What is left of it in a pickle."""
