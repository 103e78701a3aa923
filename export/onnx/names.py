"""Names of a graph's inputs and outputs, as its users know them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

PAST, PRESENT = "past.", "present."  # in front of what a decoder keeps, as its step takes it and as it gives it


def input_names(call: Any) -> list[str]:
    """Of all tensors of a call, in their order: by keyword, or "input", "input_1" and so on by position."""
    args, kwargs = call
    named: list[tuple[str, Any]] = [("input" if not i else f"input_{i}", each) for i, each in enumerate(args)]
    named += kwargs.items()
    return [
        "_".join([name, *_words(path)])
        for name, each in named
        for path, leaf in pytree.tree_flatten_with_path(each)[0]
        if isinstance(leaf, torch.Tensor)
    ]


def output_names(outputs: Any) -> list[str]:
    """Of all tensors that a model gives: the fields of a ModelOutput or dict, or "output", "output_1" and so on."""
    names = []
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(leaf, torch.Tensor):
            words = _words(path)
            names.append("_".join(["output", *words] if not words or words[0].isdigit() else words))
    return names


def _words(path: tuple[Any, ...]) -> list[str]:
    """A path through dicts, sequences and objects as words."""
    return [str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path]
