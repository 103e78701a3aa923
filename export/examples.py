"""Inputs of other sizes than a model was captured with, to export it by and to try what was exported on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.elsewhere import Sizes, example_at, is_mask, sizes_of_example
from remixer.rewrite.inputs import Call, tensors_in
from remixer.rewrite.program import Program, bytes_at

EXPORT_LENGTH = 300  # long enough to have two blocks of everything, and for nothing to look like a constant
# One token, few, odd ones, one past the default window, and one past the blocks that transforms go by.
LENGTHS = (1, 2, 37, 129, 250, 513)
BATCHES = (1, 3, 2)
OUTPUTS = 2**27  # bytes of what a model gives for several rows; for more it gets fewer rows


class Trial(NamedTuple):
    """One call to try a file with.

    Attributes:
        call: the inputs.
        exist: (B, T) bool, which tokens do, or None if there is no mask.
        name: what it is, for errors.
    """

    call: Call
    exist: Tensor | None
    name: str


def example_for_export(program: Program, length: int) -> Call:
    """Two rows or more of `length` tokens, or as near as the program allows, so that nothing looks like a constant.

    They are an odd number, see `uneven`. Where the model itself doesn't take so many, they are about as many as it was
    captured with, and as many as that if it takes no others, as one of images of one size.
    """
    for wanted in (length, None):
        call = example_at(program, _uneven(program, _sizes(program, 2, wanted)))
        try:
            run(program.graph_module, call)
        except NotRunError:
            continue
        return call
    return example_at(program, _sizes(program, 2, None))


def trials(program: Program) -> Iterator[Trial]:
    """Calls at all LENGTHS and the example's own: with nothing masked, and padded on the right and on the left.

    Those that the program is known not to take are brought within its limits; others may still be too long for it.
    """
    seen: set[tuple[int, ...]] = set()
    for index, length in enumerate((*LENGTHS, None)):
        sizes = _affordable(program, BATCHES[index % len(BATCHES)], length)
        if tuple(sizes.values()) in seen:
            continue
        seen.add(tuple(sizes.values()))
        for side in ("whole", "right", "left"):
            call = example_at(program, sizes, functools.partial(_padded, side=side))
            tensors = tensors_in(call)
            masks = [each for each in tensors if is_mask(each)]
            exist = masks[0].bool() if masks and masks[0].dim() == 2 else None
            name = "inputs " + ", ".join(str(tuple(each.shape)) for each in tensors)
            yield Trial(call, exist, name if side == "whole" else f"{name}, padded on the {side}")
            if not masks:
                break


def _affordable(program: Program, batch: int, length: int | None) -> Sizes:
    """Sizes of that many rows, or as many as the outputs allow: a vocabulary's logits may outgrow the model."""
    sizes = _sizes(program, batch, length)
    outputs = program.graph.output_node().all_input_nodes
    while batch > 1 and sum(bytes_at(node, sizes) or 0 for node in outputs) > OUTPUTS:
        batch -= 1
        sizes = _sizes(program, batch, length)
    return sizes


def _sizes(program: Program, batch: int, length: int | None) -> Sizes:
    """Values for the symbols, within their limits; None for the lengths of the program's own example."""
    sizes: Sizes = {}
    for symbol, own in sizes_of_example(program).items():
        smallest, largest = program.limits.get(symbol, (1, None))
        if smallest <= 2:
            smallest = 1  # torch.export takes nothing below 2, its graphs do
        wanted = batch if symbol in program.batch else own if length is None else length
        sizes[symbol] = max(smallest, wanted if largest is None else min(wanted, largest))
    return sizes


def uneven(tokens: int, least: int = 2) -> int:
    """A number of tokens to export by: one less where it is even, as long as that is not below the least.

    An even one may happen to fill blocks of tokens, which torch.export then takes for a rule.
    """
    return tokens - 1 if tokens % 2 == 0 and tokens > least else tokens


def _uneven(program: Program, sizes: Sizes) -> Sizes:
    """Sizes whose numbers of tokens are uneven, where that is within their limits."""
    limits = {symbol: max(2, program.limits.get(symbol, (1, None))[0]) for symbol in sizes}
    return {symbol: size if symbol in program.batch else uneven(size, limits[symbol]) for symbol, size in sizes.items()}


def _padded(mask: Tensor, side: str) -> Tensor:
    """All ones but for some tokens at one end of each row, fewer in later rows; one token exists at least."""
    mask = torch.ones_like(mask)
    T = mask.shape[-1]
    for row in range(mask.shape[0]) if side != "whole" else ():
        hidden = min(T - 1, T // (3 + row))
        if hidden:
            mask[row, ..., slice(T - hidden, None) if side == "right" else slice(None, hidden)] = 0
    return mask
