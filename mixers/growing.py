"""Tensors that grow by a few tokens at a time without being copied each time: memory is taken by blocks."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.mixers.eager import unobserved

ROOM = 256  # tokens that there is memory for behind those of a new block


@dataclass
class _Block:
    """Memory of several tokens, dimension 2 of `buffer`, of which the first `end` are written."""

    buffer: Tensor
    end: int


# By the id of a tensor that lives, the block that it shows and the first token there. Copies of the tensor are unknown
# here, and get a block of their own.
_PLACES: dict[int, tuple[weakref.ref[Tensor], _Block, int]] = {}


def grown(past: Tensor, new: Tensor) -> Tensor:
    """The tokens of both, (B, G, P + T, D), from (B, G, P, D) and (B, G, T, D).

    Where nobody differentiates or traces, the new ones are written behind the old ones in the same memory as long as
    there is room that nobody has taken: `past` keeps its values. All others are copied.
    """
    if not unobserved(past, new) or past.dtype != new.dtype:
        return torch.cat([past, new], 2)
    (B, G, P, D), T = past.shape, new.shape[2]
    block, start = _place(past)
    if block is None or block.end != start + P or start + P + T > block.buffer.shape[2] or _closed(block.buffer):
        block, start = _Block(past.new_empty(B, G, P + T + ROOM, D), P), 0
        block.buffer[:, :, :P] = past
    block.buffer[:, :, block.end : block.end + T] = new
    block.end += T
    return _shown(block, start, P + T)


def latest(tokens: Tensor, most: int) -> Tensor:
    """The last tokens (B, G, most, D), of which there are as many at least; they can grow on where they are."""
    first = tokens.shape[2] - most
    block, start = _place(tokens)
    return tokens.narrow(2, first, most) if block is None else _shown(block, start + first, most)


def _closed(buffer: Tensor) -> bool:
    """Whether torch forbids to write into it: it was made in inference mode, and this is not."""
    return buffer.is_inference() and not torch.is_inference_mode_enabled()


def _shown(block: _Block, start: int, tokens: int) -> Tensor:
    view = block.buffer.narrow(2, start, tokens)
    key = id(view)
    _PLACES[key] = (weakref.ref(view, lambda _: _PLACES.pop(key, None)), block, start)
    return view


def _place(tokens: Tensor) -> tuple[_Block | None, int]:
    lives, block, start = _PLACES.get(id(tokens), (None, None, 0))
    return (block, start) if lives is not None and lives() is tokens else (None, 0)
