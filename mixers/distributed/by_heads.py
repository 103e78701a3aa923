"""Any mixer whose heads know nothing of one another, by all-to-all: each process mixes all tokens of some heads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from remixer.mixers.base import Mixer
from remixer.mixers.distributed.collectives import exchanged
from remixer.mixers.distributed.layout import in_order, own_places
from remixer.mixers.distributed.schemes import Spread, spread_again


def of_some_heads(mixer: Mixer, size: int) -> Mixer | None:
    """A mixer as this one for the heads of one of so many processes, or None if it can't be cut.

    Its weights are not those of any head: `mix_by_heads` gives it the own ones.
    """
    spec = mixer.spec
    if mixer.by_head() is None or spec.kv_heads % size or spec.bias == "dense":
        return None
    part = replace(spec, heads=spec.heads // size, kv_heads=spec.kv_heads // size)
    weight = next(iter(mixer.parameters()), None)
    made = type(mixer)(part, mixer.config)
    return made if weight is None else made.to(weight.device, weight.dtype)


def mix_by_heads(mixer: Mixer, some: Mixer, operands: dict[str, Tensor | None], spread: Spread) -> Tensor:
    """This process's part of what a mixer gives, from its parts of the operands.

    Args:
        mixer: whose weights are used.
        some: what `of_some_heads` made of it.
        operands: see Mixer.forward, of this process's tokens; a bias by offset is whole.
        spread: how tokens are spread.

    Returns:
        (B, H, n, E).
    """
    ranks, spec = spread.ranks, mixer.spec
    given: dict[str, Tensor | None] = dict(operands)
    for name, operand in operands.items():
        if operand is None:
            continue
        if name in ("query", "key", "value"):
            together = exchanged(operand, 1, 2, ranks)
            tokens = spread.queries if name == "query" else spread.keys
            given[name] = in_order(together, 2, tokens, ranks.size, spread.layout)
        elif name == "padding":
            given[name] = spread.whole(operand.to(torch.uint8), 1, spread.keys).bool()
        elif name == "source":
            given[name] = spread.whole(operand, 1, spread.keys)
        elif name == "bias":
            given[name] = operand.index_select(0, own_places(operand, spec.heads // ranks.size, ranks, "contiguous"))
    counts = {"heads": spec.heads, "kv_heads": spec.kv_heads}
    cut = mixer.by_head() or {}
    weights = {}
    for name, weight in (*mixer.named_parameters(), *mixer.named_buffers()):
        if name in cut:
            heads = counts[cut[name]]
            mine = own_places(weight, heads // ranks.size, ranks, "contiguous")
            weight = weight.unflatten(0, (heads, -1)).index_select(0, mine).flatten(0, 1)
        weights[name] = weight
    some.train(mixer.training)
    mixed: Tensor = torch.func.functional_call(some, weights, (), given)
    return exchanged(spread_again(mixed, spread), 2, 1, ranks)
