"""What a process sends for Long-Short mixing of its own tokens, to the byte."""

from __future__ import annotations

from remixer.mixers.distributed.cost import Task
from remixer.mixers.distributed.halo import tokens_sent
from remixer.mixers.distributed.layout import part_size
from remixer.mixers.distributed.long_short import reach
from remixer.mixers.long_short import LongShortMixer
from remixer.mixers.long_short.memory import Memory


def sent_for_own_tokens(mixer: LongShortMixer, task: Task, rank: int) -> tuple[int, int]:
    """Bytes that one process sends in the forward pass and in the backward pass of `mix_own_tokens`.

    A sum over processes of n bytes counts as 2 (P - 1) / P n, as a ring of them sends.

    Args:
        mixer: the mixer.
        task: gives batch, tokens (queries), processes and the size of a number.
        rank: which process: those at the ends have neighbours on one side only.
    """
    spec, config, size = mixer.spec, mixer.config, task.size
    n = part_size(task.queries, size, "contiguous")
    precise, both = max(4, task.element), spec.head_dim + spec.value_dim
    heads = task.batch * spec.kv_heads
    sent = back = 0

    def exchange(left: int, right: int, token: int) -> None:
        nonlocal sent, back
        sent += token * tokens_sent(rank, size, n, left, right)
        back += token * tokens_sent(size - 1 - rank, size, n, left, right)  # what came goes home

    def add_up(count: int) -> int:
        return 2 * (size - 1) * count // size

    exchange(*reach(mixer), heads * both * task.element)
    sinks = add_up(heads * mixer.sinks * both * task.element)
    sent, back = sent + sinks, back + sinks
    if mixer.rank and not spec.causal:
        sums = add_up(heads * mixer.rank * (both + 1) * precise)
        sent, back = sent + sums + add_up(heads * mixer.rank * precise), back + sums
    elif mixer.rank:
        segments = -(-n // config.segment)
        memory = Memory.of(config.memory, config.per_size, -(-task.queries // config.segment))
        entry = both * task.element if memory.levels == 1 else (both + 1) * precise
        table = (size - 1) * segments * heads * mixer.rank * entry
        sent, back = sent + table, back + table
        if config.project_from == "source":
            assert spec.source_dim is not None
            exchange(config.segment - 1, 0, task.batch * spec.source_dim * task.element)
    return sent, back
