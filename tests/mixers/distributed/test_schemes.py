"""Every scheme, in real processes, against attention in one process: values and gradients."""

import dataclasses

import in_processes
import pytest
import torch

from remixer.mixers import AttentionSpec
from remixer.mixers.distributed.cost import SCHEMES, Task, cost, refusal

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.4)
CAUSAL = {"causal": True}
CASES = {
    "plain": ({}, "none"),
    "causal": (CAUSAL, "none"),
    "other value size": ({**CAUSAL, "value_dim": 6}, "none"),
    "one key head": ({**CAUSAL, "kv_heads": 1}, "none"),
    "no groups": ({"kv_heads": 4}, "right"),
    "padding": ({"padding": True}, "right"),
    "left padding, causal": ({**CAUSAL, "padding": True, "dead_rows": "zero"}, "left"),
    "left padding, mean": ({**CAUSAL, "padding": True, "dead_rows": "mean"}, "left"),
    "left padding, past": ({**CAUSAL, "padding": True, "window": (3, 0), "dead_rows": "past"}, "left"),
    "nothing exists": ({"padding": True, "dead_rows": "mean"}, "dead"),
    "queries are padded": ({"padding": True, "pads_queries": True}, "right"),
    "window": ({"window": (3, 2)}, "none"),
    "causal window": ({**CAUSAL, "window": (4, 0)}, "none"),
    "offset bias": ({"bias": "offset"}, "none"),
    "causal offset bias": ({**CAUSAL, "bias": "offset", "padding": True}, "left"),
    "bias by existing keys": ({**CAUSAL, "bias": "offset", "padding": True, "skips_padding": True}, "left"),
    "dense bias": ({"bias": "dense"}, "none"),
    "softcap": ({**CAUSAL, "softcap": 1.5}, "none"),
    "sink": ({**CAUSAL, "sink": True}, "none"),
}


def spec_of(name, **others):
    changes, padding = CASES[name]
    return dataclasses.replace(SPEC, **changes, **others), padding


def limit(dtype):
    return {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


@pytest.mark.parametrize(("name", "size"), [*((name, 4) for name in CASES), ("causal", 2), ("left padding, mean", 3)])
@pytest.mark.parametrize("scheme", [*SCHEMES, "auto"])
def test_it_is_attention_in_one_process(processes, name, scheme, size):
    spec, padding = spec_of(name)
    why = None if scheme == "auto" else refusal(scheme, Task(spec, 1, 1, 1, size))
    for B, T in ((2, 16), (1, 13), (2, 3), (3, 1)):  # whole parts, odd ones, fewer tokens than processes, one token
        call = (in_processes.differences, spec, scheme, B, T, T, padding, torch.float64)
        if why is not None:
            with pytest.raises(AssertionError, match="can't be distributed"):
                processes(size)(*call)
            return
        for found in processes(size)(*call):
            assert max(found.values()) <= limit(torch.float64), (B, T, found)


@pytest.mark.parametrize("name", ["causal", "left padding, mean", "causal window", "causal offset bias"])
def test_gathered_keys_that_no_query_may_see_are_skipped(processes, name):
    """As many scores as a ring makes, or fewer where a window cuts into a piece."""
    spec, padding = spec_of(name)
    for size in (4, 3):
        pairs = processes(size)(in_processes.scores_made, spec, 2, 64, padding, torch.float64)
        for rank, (gathering, ring) in enumerate(pairs):
            assert gathering <= min(ring, 64 * 64 / size * 0.65), (rank, pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_lower_precision(processes, scheme, dtype):
    spec, padding = spec_of("causal", dtype=dtype)
    for found in processes(4)(in_processes.differences, spec, scheme, 2, 37, 37, padding, dtype):
        assert max(found.values()) <= limit(dtype), found


@pytest.mark.parametrize("scheme", ["replicated", "all_gather", "ulysses"])
def test_cross_attention(processes, scheme):
    spec = dataclasses.replace(SPEC, cross=True, padding=True)
    for T, S in ((5, 9), (1, 6), (8, 2)):
        for found in processes(4)(in_processes.differences, spec, scheme, 2, T, S, "right", torch.float64):
            assert max(found.values()) <= limit(torch.float64), (T, S, found)


@pytest.mark.parametrize("name", ["plain", "causal", "padding", "one key head"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_sends_what_the_cost_model_says(processes, scheme, name):
    spec, padding = spec_of(name)
    if scheme == "replicated":
        spec = dataclasses.replace(spec, kv_heads=1)  # by rows: gradients of keys and values stay where they are
    task = Task(spec, 2, 16, 16, 4, element=4)
    expected = cost(scheme, task)
    for sent, back in processes(4)(in_processes.bytes_sent, spec, scheme, 2, 16, padding, torch.float32):
        assert (sent, back) == (expected.sent, expected.sent_back)


def test_the_comparison_can_fail(processes):
    spec, padding = spec_of("causal")
    call = (in_processes.differences, spec, "ring", 2, 16, 16, padding, torch.float64)
    assert all(max(found.values()) > 1e-3 for found in processes(2)(in_processes.with_fault, *call))


def test_operators_of_older_torch(processes):
    spec, padding = spec_of("causal")
    for scheme in ("all_gather", "ulysses", "replicated"):
        call = (in_processes.differences, spec, scheme, 2, 13, 13, padding, torch.float64)
        for found in processes(4)(in_processes.as_before_2_13, *call):
            assert max(found.values()) <= limit(torch.float64), found


def test_the_gradient_of_a_sum_over_processes(processes):
    """Of 4 losses (1 + 2 + 3 + 4)^2, by each part."""
    assert processes(4)(in_processes.totals) == [80.0] * 4
    assert processes(4)(in_processes.as_before_2_13, in_processes.totals) == [80.0] * 4
