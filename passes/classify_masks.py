"""Pass: say what each mask means, and wire the padding itself in place of the N x N tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from remixer.mixers import AttentionSpec, Softmax
from remixer.mixers.offset_bias import LinearBias
from remixer.mixers.precision import at_least_float32
from remixer.passes.base import Pass
from remixer.passes.mask_fit import MaskForm, NoFitError, allowed_in, fit
from remixer.passes.mask_trials import MaskRunner, Padding, padding_candidates
from remixer.passes.offset_bias import FoundOffsets, read_offsets
from remixer.passes.packed_documents import packed_documents
from remixer.passes.sites import Site, lengths_of, same_length, sites_of
from remixer.passes.trial_sizes import NotTriedError
from remixer.passes.value_numbers import value_numbers
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss
from remixer.rewrite.program import Program
from remixer.rewrite.slices import Slicer, one_thread

aten = torch.ops.aten


@dataclass(frozen=True)
class Understood:
    """A mask's form, the padding that it reads, and its bias: by offset, or why it stays dense."""

    form: MaskForm
    padding: Padding | None
    offsets: FoundOffsets | None = None
    dense: str = ""


@dataclass(frozen=True)
class ClassifyMasks(Pass):
    """Fit causal, window, padding and bias to every site's mask by running its slice; keep what doesn't fit.

    The (B, S) padding tensor is looked for inside the slice, so that nothing quadratic is needed any more. A
    mask that is not understood stays a dense bias, with the reason in the site's record.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        slicer = Slicer(editor.program)
        numbers = value_numbers(editor.graph)  # layers that compute one mask again and again have it read once
        first: dict[int, Understood | str] = {}
        known: dict[fx.Node, Understood | str] = {}
        masked = [(site, mask) for site in sites_of(editor.program) if (mask := site.operand("bias"))]
        for site, mask in masked:  # all before the first edit, which would change the graph under the slicer
            found = first.get(numbers[mask])
            if found is None or not _reads(slicer, mask, found):
                with one_thread():
                    found = understand(editor.program, slicer, site, mask)
                first.setdefault(numbers[mask], found)
            known[mask] = found
        wiring = _Wiring(editor, numbers)
        for site, mask in masked:
            found = known[mask]
            note = found if isinstance(found, str) else found.dense
            if note:
                site.node.meta["site"] = replace(site.record, note=note)
                editor.miss(Miss(note, mask, "ClassifyMasks", site.name))
            if isinstance(found, Understood):
                with editor.rewriting("ClassifyMasks", site.node, site.name):
                    wiring.rewire(site, mask, found)


def _reads(slicer: Slicer, mask: fx.Node, found: Understood | str) -> bool:
    """Whether a mask is computed from the very node that is the padding of another of the same value."""
    if isinstance(found, str) or found.padding is None:
        return True
    return found.padding.node in slicer.between([mask], [])


def understand(program: Program, slicer: Slicer, site: Site, mask: fx.Node) -> Understood | str:
    """What a mask means, or why that can't be told."""
    lengths = lengths_of(site)
    runner = MaskRunner(program, slicer, mask, lengths)
    aligned = same_length(*lengths)
    reasons: list[str] = []
    for node in [*padding_candidates(slicer, mask, lengths), None]:
        try:
            padding = None if node is None else _polarised(runner, node)
            form = fit(list(runner.trials(padding)), aligned=aligned)
            if padding is not None and (told := packed_documents(runner, padding)):
                return told
        except (NotTriedError, NoFitError) as error:
            reasons.append(str(error))
            if node is not None and (told := packed_documents(runner, Padding(node, True))):
                return told
            continue
        if node is not None and not form.padding:
            continue  # a padding that plays no part proves nothing about what it is computed from: try without it
        if not form.biased:
            return Understood(form, padding)
        try:
            if not aligned:
                raise NoFitError("queries and keys of its bias are not positions of one sequence")
            return Understood(form, padding, read_offsets(runner, padding, form, site.spec.heads))
        except (NotTriedError, NoFitError) as error:
            return Understood(form, padding, dense=str(error))
    return reasons[0]


def _polarised(runner: MaskRunner, node: fx.Node) -> Padding:
    """The padding with the value that means "exists": if all True hides every key, it is False."""
    first = next(runner.trials(Padding(node, True)))
    return Padding(node, bool(allowed_in(first).any()))


def understood_spec(spec: AttentionSpec, found: Understood) -> AttentionSpec:
    """A spec with what its mask turned out to mean."""
    form = found.form
    return replace(
        spec,
        causal=spec.causal or form.causal,
        window=(form.left, form.right),
        padding=form.padding,
        pads_queries=form.pads_queries,
        alignment=form.alignment,
        bias="dense" if found.dense else "offset" if found.offsets else "none",
        skips_padding=found.offsets is not None and found.offsets.skips_padding,
        dead_rows=form.dead_rows,
    )


class _Wiring:
    """Gives sites what was found in place of their masks; sites that share a mask share it."""

    def __init__(self, editor: Editor, numbers: Mapping[fx.Node, int]) -> None:
        self._editor = editor
        self._numbers = numbers
        self._paddings: dict[Padding, fx.Node] = {}
        self._biases: dict[int, fx.Node] = {}

    def rewire(self, site: Site, mask: fx.Node, found: Understood) -> None:
        """Give a site its spec and its operands."""
        spec = understood_spec(site.spec, found)
        self._editor.graph_module.set_submodule(str(site.node.target), Softmax(spec).eval())
        operands = {name: node for name, node in site.node.kwargs.items() if name != "bias"}
        if found.padding is not None:
            if found.padding not in self._paddings:
                self._paddings[found.padding] = _existing(self._editor, found.padding)
            operands["padding"] = self._paddings[found.padding]
            record = site.node.meta["site"]
            site.node.meta["site"] = replace(record, cuts={**record.cuts, "padding": found.padding.node.name})
        if found.dense:
            operands["bias"] = mask
        elif found.offsets is not None:
            number = self._numbers[mask]
            if number not in self._biases:
                self._biases[number] = _sequence(self._editor, site, found.offsets)
            operands["bias"] = self._biases[number]
        self._editor.set_operands(site.node, operands)


def _sequence(editor: Editor, site: Site, offsets: FoundOffsets) -> fx.Node:
    """The (H, 2 T - 1) node of a bias by offset, in front of the first site that needs it."""
    query = site.operand("query")
    assert query is not None
    recorded = query.meta["val"]
    owner = str(site.node.target).rpartition(".")[0]
    path = editor.register(f"{owner}.offset_bias" if owner else "offset_bias", offsets.bias.to(recorded.device))
    operands = {"tokens": editor.call(aten.sym_size.int, query, 2, before=site.node)}
    if offsets.table is not None:
        operands["table"] = offsets.table
    read = torch.float32 if offsets.table is None else offsets.table.meta["val"].dtype
    dtype = at_least_float32(read) if isinstance(offsets.bias, LinearBias) else read
    fake = recorded.new_empty((site.spec.heads, 2 * recorded.shape[2] - 1), dtype=dtype)
    return editor.call_module(path, operands, before=site.node, fake=fake)


def _existing(editor: Editor, padding: Padding) -> fx.Node:
    """A (B, S) bool node, True where a key exists, right behind the node that it is made from."""
    node, behind = padding.node, padding.node.next
    if node.meta["val"].dtype != torch.bool:
        node = editor.call(aten.to.dtype, node, torch.bool, before=behind)
    return node if padding.exists else editor.call(aten.logical_not.default, node, before=behind)
