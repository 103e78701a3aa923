"""Long-Short mixing of spread tokens, in real processes, against one process: values and gradients."""

import dataclasses

import in_processes
import pytest
import torch

from remixer.mixers import AttentionSpec, LongShort
from remixer.mixers.distributed import Task
from remixer.mixers.distributed.long_short_cost import sent_for_own_tokens

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=6, value_dim=6, scale=0.4, source_dim=5, dtype=torch.float64)
CAUSAL = {"causal": True}
PADDED = {"padding": True}
CASES = {
    "bidirectional": ({}, LongShort(window=4, rank=3, sinks=2), "none"),
    "odd window, padding": (PADDED, LongShort(window=5, rank=3, sinks=3), "left"),
    "nothing exists": (PADDED, LongShort(window=3, rank=2, sinks=1), "dead"),
    "window alone": (PADDED, LongShort(window=2, rank=0, sinks=0), "right"),
    "paper": (
        PADDED,
        LongShort(window=4, rank=3, sinks=0, dual_norm="paper", project_from="source", counted=False),
        "right",
    ),
    "offset bias": ({**PADDED, "bias": "offset"}, LongShort(window=4, rank=2, sinks=2), "left"),
    "bias, not counted": ({"bias": "offset"}, LongShort(window=3, rank=2, sinks=2, counted=False), "none"),
    "pretrained window": ({"window": (2, 3)}, LongShort(window=6), "none"),
    "causal": (CAUSAL, LongShort(window=4, segment=2, rank=2, sinks=2), "none"),
    "causal, left padding": (CAUSAL | PADDED, LongShort(window=5, segment=3, sinks=2), "left"),
    "causal, right padding": (CAUSAL | PADDED, LongShort(window=3, segment=4, memory=2), "right"),
    "causal, nothing exists": (CAUSAL | PADDED, LongShort(window=3, segment=2), "dead"),
    "causal bias": ({**CAUSAL, **PADDED, "bias": "offset"}, LongShort(window=4, segment=2, sinks=2), "left"),
    "bias by existing keys": (
        {**CAUSAL, **PADDED, "bias": "offset", "skips_padding": True},
        LongShort(window=4, segment=3, sinks=2),
        "left",
    ),
    "causal, source": (
        CAUSAL | PADDED,
        LongShort(window=3, segment=3, dual_norm="per_head", project_from="source"),
        "right",
    ),
    "causal, softcap": ({**CAUSAL, "softcap": 1.5}, LongShort(window=4, segment=2), "none"),
    "maps": ({}, LongShort(window=3, rank=2, maps=True), "none"),
    "causal, maps": (CAUSAL | PADDED, LongShort(window=3, segment=2, maps=True, dual_norm="paper"), "left"),
    "all segments": (CAUSAL, LongShort(window=2, segment=2, memory=None, counted=False), "none"),
    "dyadic": (CAUSAL | PADDED, LongShort(window=2, segment=1, memory="dyadic", per_size=1, rank=2), "left"),
    "causal window": ({**CAUSAL, "window": (3, 0)}, LongShort(window=6), "none"),
    "other value size": ({**CAUSAL, "value_dim": 3}, LongShort(window=4, segment=2), "none"),
}


def spec_of(name, **others):
    changes, config, padding = CASES[name]
    return dataclasses.replace(SPEC, **changes, **others), config, padding


# Whole parts, odd ones, a part shorter than the halo, fewer tokens than processes, one token.
SHAPES = ((2, 16), (1, 29), (2, 7), (2, 3), (3, 1))


def worst(processes, size, names, shapes):
    given = [(spec, config, B, T, padding) for spec, config, padding in map(spec_of, names) for B, T in shapes]
    for answers in processes(size)(in_processes.all_long_short_differences, given):
        for case, found in answers:
            assert max(found.values()) <= 1e-10, (case, found)


def test_values_and_gradients_are_those_of_one_process(processes):
    some = ["odd window, padding", "causal, left padding", "causal, source"]
    worst(processes, 4, CASES, [(2, 29)])
    worst(processes, 4, [*some, "nothing exists", "dyadic", "causal bias"], [(1, 3), (2, 1)])
    worst(processes, 3, some, [(2, 16), (1, 7)])
    worst(processes, 2, some, [(2, 7)])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_all_sizes(processes, size):
    worst(processes, size, CASES, SHAPES)


def test_the_comparison_can_fail(processes):
    spec, config, padding = spec_of("causal")
    for found in processes(4)(in_processes.without_halo, spec, config, 2, 16, padding):
        assert max(found["output"], found["key"]) > 1e-3


def test_lower_precision(processes):
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        for name in ("odd window, padding", "causal, left padding", "dyadic"):
            spec, config, padding = spec_of(name, dtype=dtype)
            for found in processes(4)(in_processes.long_short_differences, spec, config, 2, 29, padding):
                assert max(found.values()) <= limit, (name, dtype, found)


@pytest.mark.parametrize("T", [64, 16])  # halos within the neighbours, and beyond them
@pytest.mark.parametrize("name", ["bidirectional", "causal", "causal, source", "dyadic", "window alone"])
def test_it_sends_what_the_cost_says(processes, name, T):
    spec, config, padding = spec_of(name, dtype=torch.float32)
    task = Task(spec, 2, T, T, 4, element=4)
    mixer = in_processes.mixer_of_all(spec, dataclasses.replace(config, window=6))
    found = processes(4)(in_processes.long_short_bytes_sent, spec, mixer.config, 2, T, padding)
    assert found == [sent_for_own_tokens(mixer, task, rank) for rank in range(4)]
    assert max(sent for sent, _ in found) > 0
