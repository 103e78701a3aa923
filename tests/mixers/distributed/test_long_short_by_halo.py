"""Long-Short mixing of spread tokens, in real processes, against one process: values and gradients."""

import dataclasses

import in_processes
import pytest
import torch

from remixer.mixers import AttentionSpec, LongShort

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=6, value_dim=6, scale=0.4, source_dim=5, dtype=torch.float64)
CAUSAL = {"causal": True}
PADDED = {"padding": True}
CASES = {
    "bidirectional": ({}, LongShort(window=4, rank=3, sinks=2), "none"),
    "odd window, padding": (PADDED, LongShort(window=5, rank=3, sinks=3), "left"),
    "nothing exists": (PADDED, LongShort(window=3, rank=2, sinks=1), "dead"),
    "window alone": (PADDED, LongShort(window=2, rank=0, sinks=0), "right"),
    "paper": (PADDED, LongShort(window=4, rank=3, sinks=0, dual_norm="paper", project_from="source", counted=False), "right"),
    "offset bias": ({**PADDED, "bias": "offset"}, LongShort(window=4, rank=2, sinks=2), "left"),
    "bias, not counted": ({"bias": "offset"}, LongShort(window=3, rank=2, sinks=2, counted=False), "none"),
    "pretrained window": ({"window": (2, 3)}, LongShort(window=6), "none"),
    "causal": (CAUSAL, LongShort(window=4, segment=2, rank=2, sinks=2), "none"),
    "causal, left padding": (CAUSAL | PADDED, LongShort(window=5, segment=3, sinks=2), "left"),
    "causal, right padding": (CAUSAL | PADDED, LongShort(window=3, segment=4, memory=2), "right"),
    "causal, nothing exists": (CAUSAL | PADDED, LongShort(window=3, segment=2), "dead"),
    "causal bias": ({**CAUSAL, **PADDED, "bias": "offset"}, LongShort(window=4, segment=2, sinks=2), "left"),
    "bias by existing keys": (
        {**CAUSAL, **PADDED, "bias": "offset", "skips_padding": True}, LongShort(window=4, segment=3, sinks=2), "left",
    ),
    "causal, source": (
        CAUSAL | PADDED, LongShort(window=3, segment=3, dual_norm="per_head", project_from="source"), "right",
    ),
    "causal, softcap": ({**CAUSAL, "softcap": 1.5}, LongShort(window=4, segment=2), "none"),
    "all segments": (CAUSAL, LongShort(window=2, segment=2, memory=None, counted=False), "none"),
    "dyadic": (CAUSAL | PADDED, LongShort(window=2, segment=1, memory="dyadic", per_size=1, rank=2), "left"),
    "causal window": ({**CAUSAL, "window": (3, 0)}, LongShort(window=6), "none"),
    "other value size": ({**CAUSAL, "value_dim": 3}, LongShort(window=4, segment=2), "none"),
}


def spec_of(name, **others):
    changes, config, padding = CASES[name]
    return dataclasses.replace(SPEC, **changes, **others), config, padding


@pytest.mark.parametrize("size", [4, 3, 2, 1])
def test_values_and_gradients_are_those_of_one_process(processes, size):
    for name in CASES:
        spec, config, padding = spec_of(name)
        # Whole parts, odd ones, a part shorter than the halo, fewer tokens than processes, one token.
        for B, T in ((2, 16), (1, 29), (2, 7), (2, 3), (3, 1)):
            for found in processes(size)(in_processes.long_short_differences, spec, config, B, T, padding):
                assert max(found.values()) <= 1e-10, (name, B, T, found)
