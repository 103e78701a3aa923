"""Which scheme an attention takes, and why."""

import dataclasses

import pytest

from remixer.mixers import AttentionSpec
from remixer.mixers.distributed import Machine, Task, choose, cost
from remixer.mixers.distributed.cost import SCHEMES

SPEC = AttentionSpec(heads=8, kv_heads=8, head_dim=64, value_dim=64, scale=0.125, causal=True)


def task(size=4, tokens=8192, **changes):
    return Task(dataclasses.replace(SPEC, **changes), 1, tokens, tokens, size)


def test_formulas():
    """Elements sent, from the table of volumes: S tokens, P processes, d the width of all heads."""
    S, P, d = 8192, 4, 512
    assert cost("all_gather", task()).sent == cost("ring", task()).sent == 4 * 2 * S * d * (P - 1) // P
    assert cost("ulysses", task()).sent == 4 * 4 * S * d * (P - 1) // P**2
    assert cost("replicated", task()).sent == 4 * S * d * (P - 1) // P
    assert cost("ring", task()).held * P == 2 * cost("all_gather", task()).held


def test_what_no_query_may_see_costs_nothing_where_it_is_skipped():
    """Half of a causal attention; all of it where a scheme with all keys masks what it computes, as with a sink."""
    fast = Machine(flops=1.0, bandwidth=1e30)
    seconds = {name: cost("all_gather", task(**changes), fast).seconds for name, changes in SEEN.items()}
    assert 2 * seconds["causal"] == seconds["all"] == seconds["sink"]
    assert cost("ring", task(), fast).seconds == seconds["causal"]


SEEN = {"causal": {}, "all": {"causal": False}, "sink": {"sink": True}}


def test_few_key_heads_make_a_ring_cheap():
    many, few = task(), task(kv_heads=1)
    assert cost("ulysses", many).sent < cost("ring", many).sent
    assert cost("ring", few).sent < cost("ulysses", few).sent


@pytest.mark.parametrize(
    ("given", "scheme", "reason"),
    [
        (task(), "ring", "it sends"),
        (
            task(size=3, bias="dense"),
            "all_gather",
            "not ring: a ring takes no dense mask; not ulysses: 8 heads",
        ),
        (task(padding=True, dead_rows="past"), "ulysses", "not ring: in a ring, queries that see nothing"),
        (task(sink=True), "ulysses", "not ring: a ring takes no sink"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_choice_says_why(given, scheme, reason):
    found = choose(given)
    assert found.scheme == scheme
    assert all(part in found.reason for part in reason.split("; "))


def test_what_does_not_fit_is_not_chosen():
    found = choose(task(size=3, tokens=2**20), Machine(flops=1e15, bandwidth=1e9, memory=3 * 2**30))
    assert found.scheme == "ring"
    assert "not all_gather: it would hold 4.0 GiB, allowed 3.0" in found.reason


def test_one_process_sends_nothing():
    assert all(cost(scheme, task(size=1)).sent == cost(scheme, task(size=1)).sent_back == 0 for scheme in SCHEMES)
