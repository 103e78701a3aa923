"""Pass: remove what no output needs any more."""

from __future__ import annotations

from dataclasses import dataclass

from remixer.passes.base import Pass
from remixer.rewrite.editor import Editor


@dataclass(frozen=True)
class Sweep(Pass):
    """Remove dead nodes, replaced attentions and their masks among them, and weights that only they used."""

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        editor.sweep()
