"""Pass: put mixers that there are already in the place of attentions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from remixer.mixers import Mixer
from remixer.passes.base import Pass
from remixer.passes.sites import sites_of
from remixer.passes.substitute import wire
from remixer.rewrite.editor import Editor


@dataclass(frozen=True)
class PutMixers(Pass):
    """Let every site named here be computed by its mixer; the others stay the exact attention.

    Attributes:
        mixers: by the names of sites, each with the path that it is to hang at.
    """

    mixers: Mapping[str, tuple[str, Mixer]]

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        for site in sites_of(editor.program):
            if site.name in self.mixers:
                path, mixer = self.mixers[site.name]
                with editor.rewriting(f"PutMixers {mixer.config.name}", site.node, site.name):
                    wire(editor, site, mixer, path)
