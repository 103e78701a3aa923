"""Which far segments a block of queries attends to word for word.

The summary of a segment says what it is about; its tokens say what it holds. Every segment has a box, the largest
and the smallest value of its keys in each dimension, and the score of no key in it exceeds its bound: the sum over
dimensions of the larger of q times either (Tang et al., 2024, "Quest", section 3.3). Boxes of two neighbours make one,
so that a tree is searched from the top, at every level the best few nodes only: log n bounds for each block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.eager import plain_inference
from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.memory import MOST_LEVELS, Memory, existing_in_segments, pairs, to_multiple
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec

# How many bounds' operands are made before they are used, where that is free to choose.
BOXES_IN_CACHE = 2**22
# All nodes of a level are bounded by one product where that multiplies at most so many of a block's queries and nodes
# for every box that would have to be picked out instead.
ROWS_FOR_A_BOX = 64


@dataclass(frozen=True)
class Chosen:
    """The far segments that blocks of queries attend to.

    Attributes:
        segments: (B, G, blocks, retrieve), which; some are none.
        there: (B, G, blocks, retrieve) bool, whether they are.
        since: (B or 1, blocks), the first query of the block that sees them.
    """

    segments: Tensor
    there: Tensor
    since: Tensor


@dataclass(frozen=True)
class Tree:
    """The boxes of all nodes.

    Attributes:
        boxes: (B, G, nodes, 2 D), the largest value of each key and of minus each key, level after level.
        count: (B, nodes), how many tokens of each node exist.
        memory: how the nodes stand in the table.
    """

    boxes: Tensor
    count: Tensor
    memory: Memory

    @classmethod
    def of(cls, key: Tensor, exist: Tensor, segment: int, retrieve: int) -> Tree:
        """From keys (B, G, T, D), and which of them exist, (B or 1, T)."""
        segments = -(-key.shape[2] // segment)
        memory = Memory("dyadic", retrieve, segments, MOST_LEVELS, halved=False)
        if not torch.compiler.is_compiling():
            memory = tree_memory(segments, retrieve)
        least = torch.finfo(at_least_float32(key.dtype)).min
        both = both_signs(key).masked_fill(~exist[:, None, :, None], least)
        boxes = [to_multiple(both, 2, segment, least).unflatten(2, (-1, segment)).amax(3)]
        for _ in range(1, memory.levels):
            boxes.append(pairs(boxes[-1], 2, least).amax(3))
        return cls(torch.cat(boxes, 2), memory.table(existing_in_segments(exist, segment)), memory)


def tree_memory(segments: int, retrieve: int) -> Memory:
    """How the nodes of so many segments are laid out: with as many levels as leave few nodes at the top."""
    levels, size = 1, segments
    while size > retrieve + 1:
        size, levels = (size + 1) // 2, levels + 1
    return Memory("dyadic", retrieve, segments, levels)


def both_signs(key: Tensor) -> Tensor:
    """(..., D) to (..., 2 D), in float32 at least: what boxes are the maximum of."""
    key = key.to(at_least_float32(key.dtype))
    return torch.cat([key, -key], -1)


@torch.no_grad()
def choose(query: Tensor, key: Tensor, exist: Tensor, spec: AttentionSpec, config: LongShort) -> Chosen:
    """What every block of `retrieve_block` queries attends to: the choice of its first query that exists, if causal.

    Args:
        query: (B, H, T, D).
        key: (B, G, T, D).
        exist: (B or 1, T) bool.
        spec: of the attention that is replaced.
        config: of the mixer.
    """
    (B, _, T, _), size = query.shape, config.retrieve_block
    tree = Tree.of(key, exist, config.segment, config.retrieve)
    blocks = -(-T // config.window) * (config.window // size)
    here = F.pad(exist, (0, blocks * size - T)).unflatten(1, (blocks, size))
    rows = F.pad(query, (0, 0, 0, blocks * size - T)).unflatten(2, (blocks, size)).unflatten(1, (spec.kv_heads, -1))
    since = torch.zeros_like(here[..., 0], dtype=torch.int64)
    if spec.causal:
        since = here.int().argmax(-1)
        index = since[:, None, None, :, None, None].expand(B, *rows.shape[1:4], 1, rows.shape[-1])
        rows, here = rows.gather(4, index), here.any(-1, keepdim=True)
    rows = rows.permute(0, 1, 3, 2, 4, 5)  # (B, G, blocks, groups, size or 1, D)
    asks = here[:, None, :, None].expand(*rows.shape[:-1])
    rows, asks = rows.flatten(3, 4), asks.flatten(3, 4)
    find = functools.partial(search, tree, spec=spec, config=config)
    most = blocks
    if plain_inference(query, key):
        candidates = 6 * config.retrieve * tree.boxes.shape[-1]
        most = max(1, BOXES_IN_CACHE // (B * spec.kv_heads * candidates))
    first = torch.arange(blocks, device=query.device) * size
    if most >= blocks:
        return Chosen(*find(rows, asks, first), since)
    found = [find(rows[:, :, s], asks[:, :, s], first[s]) for s in _runs(blocks, most)]
    return Chosen(torch.cat([each[0] for each in found], 2), torch.cat([each[1] for each in found], 2), since)


def _runs(count: int, most: int) -> list[slice]:
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def search(
    tree: Tree, rows: Tensor, asks: Tensor, first: Tensor, *, spec: AttentionSpec, config: LongShort
) -> tuple[Tensor, Tensor]:
    """The segments whose bounds are largest, as far as the search finds them.

    Args:
        tree: to search.
        rows: (B, G, blocks, queries, D).
        asks: (B, G, blocks, queries) bool, which of them exist.
        first: (blocks,), the position of each block's first query.
        spec: of the attention that is replaced.
        config: of the mixer.

    Returns:
        (B, G, blocks, retrieve) segments, and bool: whether there is one.
    """
    memory, retrieve = tree.memory, config.retrieve
    (B, G), device = rows.shape[:2], rows.device
    weights = torch.cat([rows.relu(), (-rows).relu()], -1).to(tree.boxes.dtype)
    samples = torch.arange(B, device=device).view(B, 1, 1, 1)
    heads = torch.arange(G, device=device).view(1, G, 1, 1)
    one = tree.count.shape[0] == 1
    start = sum(memory.sizes)
    kept = there = torch.zeros(B, G, first.shape[0], 0, dtype=torch.int64, device=device)
    there = there.bool()
    for level in reversed(range(memory.levels)):
        start, size = start - memory.sizes[level], memory.sizes[level]
        new, fresh = _entering(memory, level, first, spec, config)
        children = torch.stack([2 * kept, 2 * kept + 1], -1).flatten(3)
        nodes = torch.cat([children, new.expand(B, G, -1, -1)], -1)
        there = torch.cat([there.repeat_interleave(2, -1), fresh.expand(B, G, -1, -1)], -1) & (nodes < size)
        there = there & _outside(nodes, level, first, spec, config)
        inside = nodes.clamp(0, size - 1)
        there = there & (tree.count[0 if one else samples, start + inside] > 0)
        if not torch.compiler.is_compiling() and rows.shape[3] * size <= ROWS_FOR_A_BOX * nodes.shape[3]:
            of_all = _largest(weights.flatten(2, 3) @ tree.boxes[:, :, start : start + size].transpose(-1, -2), asks)
            bounds = of_all.gather(-1, inside)
        else:
            boxes = tree.boxes[samples, heads, start + inside]  # (B, G, blocks, nodes, 2 D)
            bounds = _largest(weights @ boxes.transpose(-1, -2), asks)
        bounds = bounds.masked_fill(~there, -torch.inf)
        best = bounds.topk(min(retrieve if level == 0 else 2 * retrieve, nodes.shape[-1]))
        kept, there = nodes.gather(-1, best.indices), best.values > -torch.inf
    return kept, there


def _largest(bounds: Tensor, asks: Tensor) -> Tensor:
    """Of the queries of a block that exist, (B, G, blocks, nodes); bounds hold theirs one after the other."""
    return bounds.view(*asks.shape, -1).masked_fill(~asks[..., None], -torch.inf).amax(-2)


def _entering(
    memory: Memory, level: int, first: Tensor, spec: AttentionSpec, config: LongShort
) -> tuple[Tensor, Tensor]:
    """The nodes of a level where the search begins, (blocks, nodes), and which of these there are."""
    if spec.causal:
        before = (first - config.window + 1).div(config.segment, rounding_mode="floor")
        oldest, end = memory.visible(before)[level]
        nodes = oldest[:, None] + torch.arange(memory.per_size + 1, device=first.device)
        return nodes, nodes < end[:, None]
    top = level == memory.levels - 1
    nodes = torch.arange(memory.per_size + 1 if top else 0, device=first.device).expand(first.shape[0], -1)
    return nodes, torch.ones_like(nodes, dtype=torch.bool)


def _outside(nodes: Tensor, level: int, first: Tensor, spec: AttentionSpec, config: LongShort) -> Tensor:
    """Which nodes, (..., blocks, nodes), have tokens outside of the window; always true of causal ones."""
    if spec.causal:
        return torch.ones_like(nodes, dtype=torch.bool)
    size, half = config.segment << level, config.window // 2
    start = (first // config.window * config.window - half)[:, None]
    return (nodes * size < start) | ((nodes + 1) * size > start + config.window + 2 * half)
