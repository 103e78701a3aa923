"""Pass: put the chosen mixers in the place of proven attentions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remixer.mixers import Mixer, MixerConfig, mixer_of
from remixer.passes.base import Pass
from remixer.passes.errors import UnsupportedAttentionError
from remixer.passes.operands import hidden_state
from remixer.passes.prove_sites import revert
from remixer.passes.select import Selection
from remixer.passes.sites import Site, named_nodes, sites_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss
from remixer.rewrite.program import Program


@dataclass(frozen=True)
class Substitute(Pass):
    """Replace every selected site by its mixer, wired to the operands it names; the others go back.

    Attributes:
        selection: which site gets which config.
        strict: raise where a selected site can't take its mixer, rather than keep it with the reason.
    """

    selection: Selection
    strict: bool = False

    def requires(self, program: Program) -> None:
        """See Pass.requires. Raises before anything is changed.

        Raises:
            UnsupportedAttentionError: strict, and a site can't take its mixer.
        """
        if not self.strict:
            return
        for site in sites_of(program):
            config = self.selection.config_for(site.name)
            if config is not None and (reason := _unsupported(site, config)):
                raise UnsupportedAttentionError(refusal(site.name, reason))

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        nodes = named_nodes(editor.graph)
        for site in sites_of(editor.program):
            config = self.selection.config_for(site.name)
            if config is None:
                revert(editor, site, nodes)
                continue
            if reason := _unsupported(site, config):
                revert(editor, site, nodes)
                editor.miss(Miss(reason, site.node, "Substitute", site.name))
                continue
            with editor.rewriting(f"Substitute {config.name}", site.node, site.name):
                _substitute(editor, site, config)


def refusal(name: str, reason: str) -> str:
    """The sentence for a site that can't take a mixer: what, where, and what to do."""
    return f'cannot replace attention at {name}: {reason}. Leave it out with {{"{name}": None}}'


def _unsupported(site: Site, config: MixerConfig) -> str:
    """Why a site can't take a mixer, with what was not understood of its mask; "" if it can."""
    reason = mixer_of(config).supports(site.spec, config)
    if reason is None:
        return ""
    return f"{reason} ({site.record.note})" if site.record.note else str(reason)


def fitted(site: Site, config: MixerConfig) -> Mixer:
    """A new mixer for a site, with the device and dtype of the values that it is to mix."""
    mixer = mixer_of(config).from_attention(site.spec, config).eval()
    value = site.operand("value")
    assert value is not None
    recorded = value.meta["val"]
    mixer.to(device=recorded.device)
    if recorded.dtype in (torch.float16, torch.bfloat16, torch.float64):
        mixer.to(dtype=recorded.dtype)
    return mixer


def wire(editor: Editor, site: Site, mixer: Mixer, path: str) -> None:
    """Let a mixer stand in a site's place, given the operands that it names.

    Args:
        editor: of the site's program.
        site: whose attention goes.
        mixer: that comes.
        path: where it is to hang, or that with the first free number behind it.
    """
    operands = {name: site.node.kwargs[name] for name in mixer.operands if name in site.node.kwargs}
    if "source" in mixer.operands:
        key = site.operand("key")
        assert key is not None
        operands["source"] = hidden_state(key, editor.graph_module)
    node = editor.call_module(editor.register(path, mixer), operands, before=site.node, fake=site.node.meta["val"])
    node.meta["site"] = site.record
    del site.node.meta["site"]
    editor.replace(site.node, node)


def _substitute(editor: Editor, site: Site, config: MixerConfig) -> None:
    owner = str(site.node.target).rpartition(".")[0]
    wire(editor, site, fitted(site, config), f"{owner}.mixer" if owner else "mixer")
