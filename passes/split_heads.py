"""Pass: make one attention several, each of some of its heads, so that each can have a mixer of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from remixer.mixers import Softmax
from remixer.passes.base import Pass
from remixer.passes.errors import SelectionError
from remixer.passes.sites import Site, sites_of
from remixer.rewrite.editor import Editor
from remixer.rewrite.program import Program

aten = torch.ops.aten
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SplitHeads(Pass):
    """Every site named here becomes one for each group of its key/value heads, named as `part_name` says.

    Heads of a query go with the key/value head that they read. What the groups give is put together again in the
    order of the heads.

    Attributes:
        groups: by the names of sites, the key/value heads of each group; every head is in one of them.
    """

    groups: Mapping[str, Groups]

    def requires(self, program: Program) -> None:
        """See Pass.requires.

        Raises:
            SelectionError: there is no site of a name, or its groups don't hold every head once.
        """
        known = {site.name: site for site in sites_of(program)}
        for name, groups in self.groups.items():
            if name not in known:
                raise SelectionError(f"there is no attention {name!r} whose heads could be split")
            heads = sorted(head for group in groups for head in group)
            if heads != list(range(known[name].spec.kv_heads)) or not all(groups):
                raise SelectionError(
                    f"groups of the heads of {name} must hold each of its {known[name].spec.kv_heads} key/value heads "
                    f"once, got {groups}"
                )

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        for site in sites_of(editor.program):
            groups = self.groups.get(site.name, ())
            if len(groups) > 1:
                with editor.rewriting("SplitHeads", site.node, site.name):
                    _split(editor, site, groups)


def part_name(site: str, group: Sequence[int]) -> str:
    """The name of a site of some of another's key/value heads.

    Examples:
        >>> part_name("layers.3.attn", (0, 1, 2, 5))
        'layers.3.attn[heads 0-2 5]'
    """
    runs = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in _runs(sorted(group))]
    return f"{site}[heads {' '.join(runs)}]"


def _split(editor: Editor, site: Site, groups: Groups) -> None:
    node, spec = site.node, site.spec
    place: dict[int, tuple[fx.Node, int]] = {}
    for group in groups:
        heads = [head * spec.groups + each for head in sorted(group) for each in range(spec.groups)]
        part = Softmax(replace(spec, heads=len(heads), kv_heads=len(group))).eval()
        operands = {
            name: _of_heads(editor, name, operand, heads, sorted(group), site)
            for name, operand in node.kwargs.items()
            if isinstance(operand, fx.Node)
        }
        path = editor.register(str(node.target), part)
        call = editor.call_module(path, operands, before=node, fake=node.meta["val"][:, : len(heads)])
        # Left as it is, a part is the exact attention of its heads.
        record = replace(site.record, name=part_name(site.name, group), result=call.name, original=call.name)
        call.meta["site"] = record
        place |= {head: (call, index) for index, head in enumerate(heads)}
    pieces: list[fx.Node] = []
    start = 0
    for head in range(1, spec.heads + 1):
        owner, index = place[start]
        if head == spec.heads or place[head] != (owner, index + head - start):
            pieces.append(_slice(editor, owner, 1, index, head - start, node))
            start = head
    whole = editor.call(aten.cat.default, pieces, 1, before=node, fake=node.meta["val"])
    del node.meta["site"]
    editor.replace(node, whole)


def _of_heads(
    editor: Editor, name: str, operand: fx.Node, heads: list[int], kv_heads: list[int], site: Site
) -> fx.Node:
    """The part of an operand that some heads read."""
    dims = {"query": 1, "key": 1, "value": 1, "sink": 0, "bias": 0 if site.spec.bias == "offset" else -3}
    if name not in dims:
        return operand
    value: Any = operand.meta["val"]
    dim = dims[name] % value.dim() if value.dim() >= -dims[name] else None
    if dim is None or value.shape[dim] == 1 != site.spec.heads:
        return operand  # the same for all heads
    wanted = kv_heads if name in ("key", "value") else heads
    if wanted == list(range(value.shape[dim])):
        return operand
    pieces = [_slice(editor, operand, dim, run[0], len(run), site.node) for run in _runs(wanted)]
    return pieces[0] if len(pieces) == 1 else editor.call(aten.cat.default, pieces, dim, before=site.node)


def _slice(editor: Editor, node: fx.Node, dim: int, start: int, count: int, before: fx.Node) -> fx.Node:
    return editor.call(aten.slice.Tensor, node, dim, start, start + count, before=before)


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Numbers in order as runs without gaps."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
