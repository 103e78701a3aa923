"""Pass: say what each mask means, and wire the padding itself in place of the N x N tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from remixer.mixers import AttentionSpec, Softmax
from remixer.passes.base import Pass
from remixer.passes.mask_fit import MaskForm, NoFitError, allowed_in, fit
from remixer.passes.mask_trials import Padding, padding_candidates, run_trials
from remixer.passes.sites import Site, lengths_of, same_length, sites_of
from remixer.passes.trial_sizes import NotTriedError
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss
from remixer.rewrite.program import Program, expression
from remixer.rewrite.slices import Slicer, one_thread

aten = torch.ops.aten


@dataclass(frozen=True)
class Understood:
    """A mask's form and the padding that it reads."""

    form: MaskForm
    padding: Padding | None


@dataclass(frozen=True)
class ClassifyMasks(Pass):
    """Fit causal, window, padding and bias to every site's mask by running its slice; keep what doesn't fit.

    The (B, S) padding tensor is looked for inside the slice, so that nothing quadratic is needed any more. A
    mask that is not understood stays a dense bias, with the reason in the site's record.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        slicer = Slicer(editor.program)
        known: dict[fx.Node, Understood | str] = {}
        masked = [(site, mask) for site in sites_of(editor.program) if (mask := site.operand("bias"))]
        for site, mask in masked:  # all before the first edit, which would change the graph under the slicer
            if mask not in known:
                with one_thread():
                    known[mask] = understand(editor.program, slicer, site, mask)
        paddings: dict[Padding, fx.Node] = {}
        for site, mask in masked:
            found = known[mask]
            if isinstance(found, str):
                site.node.meta["site"] = replace(site.record, note=found)
                editor.miss(Miss(found, mask, "ClassifyMasks", site.name))
                continue
            with editor.rewriting("ClassifyMasks", site.node, site.name):
                _rewire(editor, site, found, paddings)


def understand(program: Program, slicer: Slicer, site: Site, mask: fx.Node) -> Understood | str:
    """What a mask means, or why that can't be told."""
    lengths = lengths_of(site)
    keys = expression(lengths[1])
    aligned = same_length(*lengths)
    reasons: list[str] = []
    for node in [*padding_candidates(slicer, mask, keys), None]:
        try:
            padding = None if node is None else _polarised(program, slicer, mask, node, lengths)
            form = fit(list(run_trials(program, slicer, mask, padding, lengths)), aligned=aligned)
        except (NotTriedError, NoFitError) as error:
            reasons.append(str(error))
            continue
        if node is None or form.padding:
            return Understood(form, padding)
        # A padding that plays no part proves nothing about what it is computed from: try without it.
    return reasons[0]


def _polarised(program: Program, slicer: Slicer, mask: fx.Node, node: fx.Node, lengths: tuple[Any, Any]) -> Padding:
    """The padding with the value that means "exists": if all True hides every key, it is False."""
    first = next(run_trials(program, slicer, mask, Padding(node, True), lengths))
    return Padding(node, bool(allowed_in(first).any()))


def understood_spec(spec: AttentionSpec, form: MaskForm) -> AttentionSpec:
    """A spec with what its mask turned out to mean."""
    return replace(
        spec,
        causal=spec.causal or form.causal,
        window=(form.left, form.right),
        padding=form.padding,
        bias=form.bias,
        dead_rows=form.dead_rows,
    )


def _rewire(editor: Editor, site: Site, found: Understood, paddings: dict[Padding, fx.Node]) -> None:
    spec = understood_spec(site.spec, found.form)
    editor.graph_module.set_submodule(str(site.node.target), Softmax(spec).eval())
    operands = {name: site.node.kwargs[name] for name in ("query", "key", "value")}
    if found.padding is not None:
        if found.padding not in paddings:
            paddings[found.padding] = _existing(editor, found.padding)
        operands["padding"] = paddings[found.padding]
        cuts = {**site.record.cuts, "padding": found.padding.node.name}
        site.node.meta["site"] = replace(site.record, cuts=cuts)
    if spec.bias != "none":
        operands["bias"] = site.node.kwargs["bias"]
    editor.set_operands(site.node, operands)


def _existing(editor: Editor, padding: Padding) -> fx.Node:
    """A (B, S) bool node, True where a key exists, right behind the node that it is made from."""
    node, behind = padding.node, padding.node.next
    if node.meta["val"].dtype != torch.bool:
        node = editor.call(aten.to.dtype, node, torch.bool, before=behind)
    return node if padding.exists else editor.call(aten.logical_not.default, node, before=behind)
