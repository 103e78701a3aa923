"""The search for far segments in its slow, obvious form: lists of nodes, one bound after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.long_short.config import LongShort
from remixer.mixers.spec import AttentionSpec


def merged_with_age(runs: list[tuple[int, int]], per_size: int) -> list[tuple[int, int]]:
    """Runs of tokens (first, size), the two oldest of a size made one as long as there are more than enough."""
    kept: list[tuple[int, int]] = []
    level = runs
    while level:
        older = []
        while len(level) >= per_size + 2:
            (first, size), (_, _), *level = level
            older.append((first, 2 * size))
        kept, level = level + kept, older
    return kept


def segments_before(before: int, segment: int) -> list[tuple[int, int]]:
    """The whole segments of the first so many tokens."""
    return [(first, segment) for first in range(0, before - segment + 1, segment)]


@torch.no_grad()
def chosen_segments(
    query: Tensor, key: Tensor, kept: list[int], position: int, spec: AttentionSpec, config: LongShort
) -> list[int]:
    """Where the segments start that a query attends to word for word.

    Args:
        query: (groups, T, D), of the heads that read a key/value head.
        key: (T, D), of that head.
        kept: the positions that exist.
        position: of the query.
        spec: of the attention that is replaced.
        config: of the mixer.
    """
    T, size, segment = key.shape[0], config.retrieve_block, config.segment
    first = position // size * size
    asks = [t for t in range(first, min(first + size, T)) if t in kept]
    if spec.causal:
        asks = asks[:1]
    if not asks or (spec.causal and position < asks[0]):
        return []
    start = first // config.window * config.window - config.window // 2
    end = start + config.window + config.window // 2 * 2
    top = segment
    while -(-T // top) > config.retrieve + 1:
        top *= 2
    begin = [(node, top) for node in range(0, T, top)]
    if spec.causal:
        begin = merged_with_age(segments_before(first - config.window + 1, segment), config.retrieve)

    def bound(run: tuple[int, int]) -> float:
        keys = key[[s for s in kept if run[0] <= s < sum(run)]]
        asked = query[:, asks].flatten(0, 1)
        products = torch.maximum(asked * keys.amax(0), asked * keys.amin(0))
        return products.sum(-1).max().item()

    def worth_it(run: tuple[int, int]) -> bool:
        outside = spec.causal or run[0] < start or sum(run) > end
        return outside and any(run[0] <= s < sum(run) for s in kept)

    best: list[tuple[int, int]] = []
    while top >= segment:
        halves = [(node + half * top, top) for node, _ in best for half in (0, 1)]
        nodes = [run for run in [*halves, *(run for run in begin if run[1] == top)] if worth_it(run)]
        most = config.retrieve * (1 if top == segment else 2)
        best = sorted(nodes, key=bound, reverse=True)[:most]
        top //= 2
    return [node for node, _ in best]
