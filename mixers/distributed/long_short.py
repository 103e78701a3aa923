"""Long-Short mixing of a sequence whose tokens are spread: each process mixes its own, with what it needs of others.

Windows need the tokens beside a part. Summaries of the whole sequence are sums over its tokens, divided by the sum of
their weights: each process sums its own, and the sums are added up. Causal summaries are made by the process in which
their segment ends, and all get all of them. The first tokens come from whichever process has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remixer.mixers.base import Mixer
from remixer.mixers.distributed.collectives import gathered, largest, total
from remixer.mixers.distributed.halo import with_halo
from remixer.mixers.distributed.own_tiles import OwnSight, OwnTiling, at_least_two, tiles_for
from remixer.mixers.distributed.ranks import Ranks
from remixer.mixers.distributed.schemes import Spread
from remixer.mixers.long_short import LongShortMixer
from remixer.mixers.long_short.memory import Memory, existing_in_segments
from remixer.mixers.long_short.sight import Tokens
from remixer.mixers.long_short.sinks import first_existing, gather_tokens
from remixer.mixers.long_short.summaries import Level, all_levels
from remixer.mixers.long_short.tiled_attention import mix_at_once
from remixer.mixers.precision import at_least_float32


def refusal_of_halo(mixer: Mixer) -> str | None:
    """Why a mixer can't go by `mix_own_tokens`, or None."""
    if type(mixer) is not LongShortMixer:
        return f"{mixer.config.name!r} looks at all tokens"
    if mixer.retrieve:
        return f"{mixer.config.name!r} retrieves tokens from anywhere"
    return None


def reach(mixer: LongShortMixer) -> tuple[int, int]:
    """How many tokens before a process's part, and how many behind it, its windows and segments need."""
    spec, window = mixer.spec, mixer.config.window
    left, right = spec.window
    before, after = window - 1 + window // 2, window - 1 + window // 2
    if spec.causal:
        before, after = window - 1 + mixer.align - 1, 0
    return min(before, before if left is None else left), min(after, after if right is None else right)


Pair = tuple[Tensor | None, Tensor | None]  # keys and values


def mix_own_tokens(mixer: LongShortMixer, operands: dict[str, Tensor | None], spread: Spread) -> Tensor:
    """This process's part of what a Long-Short mixer gives.

    Args:
        mixer: one that `refusal_of_halo` has nothing against.
        operands: see LongShortMixer.forward: query, key, value and source of this process's tokens, in contiguous
            parts; padding and a bias by offset of the whole sequence.
        spread: how tokens are spread.

    Returns:
        (B, H, n, E).
    """
    query, key, value = (operands[name] for name in ("query", "key", "value"))
    assert query is not None
    assert key is not None
    assert value is not None
    padding, bias, source = (operands.get(name) for name in ("padding", "bias", "source"))
    exist = query.new_ones(1, spread.keys, dtype=torch.bool) if padding is None else padding
    own, ranks = spread.own(query, spread.keys), spread.ranks
    before, after = reach(mixer)
    around = with_halo(torch.cat([key, value], -1), before, after, ranks)
    key_around, value_around = around.split([key.shape[-1], value.shape[-1]], -1)
    near = mixer.near(key_around), mixer.near(value_around)
    sight = _sight(mixer, exist, own, before)
    sinks: Pair = (None, None)
    if sight.sinks is not None:
        sinks = _sinks(near, sight.sinks[0] - own[:1], before, ranks, own.shape[0])
    far: Pair = (None, None)
    if mixer.rank and mixer.spec.causal:
        segment = mixer.config.segment
        reads = key_around if source is None else with_halo(source[:, None], segment - 1, 0, ranks)
        far = _of_segments(mixer, reads, key_around, value_around, sight, own, ranks)
    elif mixer.rank:
        far = _of_all(mixer, key if source is None else source[:, None], key, value, exist, own, ranks)
    keys, values = (Tokens(*each) for each in zip(near, sinks, far, strict=True))
    dropout = mixer.spec.dropout if mixer.training else 0.0
    masked = padding is not None
    return mix_at_once(query, keys, values, sight, mixer.summary_bias, bias, masked=masked, dropout=dropout)


def _sight(mixer: LongShortMixer, exist: Tensor, own: Tensor, before: int) -> OwnSight:
    """What the process's queries see; `before` is how many tokens its keys have before its own."""
    spec, config, (part, T) = mixer.spec, mixer.config, (own.shape[0], exist.shape[1])
    start, tiles = tiles_for(spec.causal, config.window, own[:1], part)
    ahead, behind = config.window // 2, config.window // 2
    if spec.causal:
        ahead, behind = config.window - 1 + mixer.align - 1, 0
    tiling = OwnTiling(config.window, ahead, behind, start, own[:1], part, before, tiles)
    counts = exist[:, :0]
    if spec.causal and mixer.rank:
        memory = Memory.of(config.memory, config.per_size, -(-T // config.segment))
        counts = memory.table(existing_in_segments(exist, config.segment))
    sinks = first_existing(exist, mixer.sinks) if mixer.sinks else None
    return OwnSight(spec, config, tiling, exist, sinks, mixer.rank, mixer.align, counts)


def _sinks(near: tuple[Tensor, Tensor], places: Tensor, before: int, ranks: Ranks, part: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the first tokens, (B, G, sinks, D and E), from the processes that have them.

    Args:
        near: keys and values of this process's tokens, with those beside them.
        places: (B or 1, sinks), counted from this process's first token.
        before: how many tokens there are before that one.
        ranks: the processes.
        part: how many tokens this one has.
    """
    mine = ((places >= 0) & (places < part))[:, None, :, None]
    found = [gather_tokens(each, places.clamp(0, part - 1) + before) for each in near]
    whole = total(torch.cat(found, -1).masked_fill(~mine, 0.0), ranks)
    key, value = whole.split([each.shape[-1] for each in near], -1)
    return key, value


def _of_all(
    mixer: LongShortMixer, reads: Tensor, key: Tensor, value: Tensor, exist: Tensor, own: Tensor, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Summaries of the whole sequence, from this process's tokens; see `summaries.pool`."""
    assert mixer.pooling is not None
    T = exist.shape[1]
    there = (exist.index_select(1, own.clamp(max=T - 1)) & (own < T))[:, None, None]
    logits = mixer.pooling.transpose(1, 2) @ reads.transpose(2, 3)  # (B, G, rank, n)
    logits = logits.to(at_least_float32(logits.dtype))
    logits = logits.masked_fill(~there, torch.finfo(logits.dtype).min)
    weights = (logits - largest(logits.amax(-1, keepdim=True), ranks)).exp() * there
    sums = torch.cat([weights.sum(-1, keepdim=True), *(weights @ each.to(weights.dtype) for each in (key, value))], -1)
    mass, far_key, far_value = total(sums, ranks).split([1, key.shape[-1], value.shape[-1]], -1)
    mass = torch.where(mass > 0.0, mass, 1.0)
    return mixer.as_seen((far_key / mass).to(key.dtype), (far_value / mass).to(value.dtype))


def _of_segments(
    mixer: LongShortMixer, reads: Tensor, key: Tensor, value: Tensor, sight: OwnSight, own: Tensor, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Causal summaries, see `summaries.pool`: each of the segments that end in this process's part, then of all.

    Args:
        mixer: whose they are.
        reads: (B, G or 1, tokens, D or C), this process's last, and those before them.
        key: likewise, (B, G, tokens, D).
        value: likewise.
        sight: of this process.
        own: (n,), its places.
        ranks: the processes.
    """
    assert mixer.pooling is not None
    n, T, segment = own.shape[0], sight.exist.shape[1], mixer.config.segment
    most = at_least_two((n + segment - 1) // segment)
    places = own[:1].div(segment, rounding_mode="floor") * segment + torch.arange(most * segment, device=own.device)
    there = sight.exist.index_select(1, places.clamp(max=T - 1)) & (places < T)
    read, own_key, own_value = (
        each.index_select(2, (places - own[:1] + each.shape[2] - n).clamp(max=each.shape[2] - 1))
        for each in (reads, key, value)
    )
    level = Level.of(mixer.pooling, read, own_key, own_value, there, segment)
    levels = sight.memory.levels
    parts = [level.key, level.value] if levels == 1 else [level.key, level.value, level.mass[..., None]]
    together = torch.cat(parts, -1).to(key.dtype if levels == 1 else level.mass.dtype)
    table = gathered(together, 2, ranks).index_select(2, _slots(T, n, segment, most, ranks.size, own))
    far_key, far_value, *mass = table.split([each.shape[-1] for each in parts], -1)
    if mass:
        far_key, far_value = all_levels(far_key, far_value, mass[0][..., 0], levels)
    return mixer.as_seen(far_key.to(key.dtype).flatten(2, 3), far_value.to(value.dtype).flatten(2, 3))


def _slots(tokens: int, part: int, segment: int, most: int, size: int, like: Tensor) -> Tensor:
    """(segments,), where each segment stands among those of all processes, `most` of each."""
    node = torch.arange((tokens + segment - 1) // segment, device=like.device)
    owner = ((node * segment + segment - 1) // part).clamp(max=size - 1)
    return owner * most + (node - owner * part // segment).clamp(0, most - 1)
