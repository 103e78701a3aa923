"""Pass: read what was written piece by piece through one node, behind the last write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from remixer.passes.base import Pass
from remixer.rewrite.editor import Editor
from remixer.rewrite.effects import storages_of, written

aten = torch.ops.aten
# Operators that make a tensor to be filled, or a copy to be changed. What is computed and then changed stays as it is,
# and a rule says so.
_MADE = {
    aten.empty.memory_format,
    aten.new_empty.default,
    aten.empty_like.default,
    aten.zeros.default,
    aten.new_zeros.default,
    aten.zeros_like.default,
    aten.clone.default,
}


@dataclass(frozen=True)
class SettleWrites(Pass):
    """Give a tensor that is filled by writes into its parts a copy behind the last of them, for its readers.

    A key that is put together in `empty(...)`, or a causal mask of which a copy gets the padding written in, is then
    a node like any other: what it holds doesn't depend on when it is read.
    """

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        order = {node: index for index, node in enumerate(editor.graph.nodes)}
        last: dict[fx.Node, fx.Node] = {}
        for node in order:
            for operand in written(node) if node.op == "call_function" else []:
                for storage in storages_of(operand):
                    last[storage] = node
        for storage, write in last.items():
            if storage.target not in _MADE:
                continue
            later = [user for user in storage.users if order[user] > order[write]]
            if not later:
                continue
            settled = editor.call(aten.clone.default, storage, before=write.next)
            for user in later:
                editor.read(user, storage, settled)
