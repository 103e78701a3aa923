"""Telling masks that keep documents apart, several of them in one row, from masks that hide padding."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.passes.mask_fit import allowed_in
from remixer.passes.mask_trials import MaskRunner, Padding
from remixer.passes.sites import same_length
from remixer.passes.trial_sizes import NotTriedError, sizes_of

LENGTHS = (4, 7, 3, 9)  # of documents, in turn


def packed_documents(runner: MaskRunner, padding: Padding) -> str:
    """Why a mask can't be told from which keys exist: it reads documents from the padding's values; "" if not.

    A padding's node is otherwise fed two values only, one for what exists and one for what doesn't. Here it
    gets the number of a document in every place, and then the position inside of the document; a mask that
    hides more of these rows than of one in which all keys exist tells documents apart.
    """
    recorded = padding.node.meta["val"]
    if recorded.dtype == torch.bool or not same_length(*runner.lengths):
        return ""
    sizes = sizes_of(runner.program, 2, 41, runner.lengths)
    rows, keys = runner.shape(padding.node, sizes)
    existing = torch.ones(rows, keys, dtype=torch.bool)
    documents, positions = _packed(keys)
    for numbers, plain in ((documents, torch.ones(keys)), (positions, torch.arange(keys))):
        try:
            packed = allowed_in(runner.trial(sizes, padding, existing, fed=numbers.expand(rows, -1)))
            whole = allowed_in(runner.trial(sizes, padding, existing, fed=plain.expand(rows, -1)))
        except NotTriedError:
            continue
        apart = not bool((packed & (documents[:, None] != documents)).any())
        itself = bool((packed | ~torch.eye(keys, dtype=torch.bool)).all())
        if bool((whole & ~packed).any()) and apart and itself:
            names = [
                repr(str(node.target))
                for node in runner.slicer.between([padding.node], [])
                if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
            ]
            return (
                f"its mask depends on the values of input {' and '.join(names)}, which tell apart the documents "
                "that are packed into one row"
            )
    return ""


def _packed(keys: int) -> tuple[Tensor, Tensor]:
    """The number of the document of every place, from 1 on, and the position in it, from 0 on."""
    lengths = torch.tensor(LENGTHS).repeat(keys // sum(LENGTHS) + 1)
    documents = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), lengths)[:keys]
    positions = torch.cat([torch.arange(int(length)) for length in lengths])[:keys]
    return documents, positions
