"""Which tokens each process has."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remixer.mixers.distributed.layout import in_order, part_size, pieces_of, places_of


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 7), st.sampled_from(["contiguous", "zigzag"]))
def test_every_token_has_one_process_and_comes_back_in_order(tokens, size, layout):
    part = part_size(tokens, size, layout)
    places = torch.cat([places_of(rank, part, size, layout) for rank in range(size)])
    assert sorted(places.tolist()) == list(range(part * size))
    assert in_order(places, 0, tokens, size, layout).tolist() == list(range(tokens))
    assert part * size - tokens < 2 * size
    assert size > 1 or part == tokens


def test_zigzag_evens_out_causal_work():
    size, tokens = 8, 8 * 32
    part = part_size(tokens, size, "zigzag")
    work = [
        sum(place + 1 for piece in pieces_of(rank, part, size, "zigzag") for place in piece) for rank in range(size)
    ]
    assert max(work) <= 1.05 * sum(work) / size
    one_by_one = [sum(place + 1 for place in pieces_of(rank, part, size, "contiguous")[0]) for rank in range(size)]
    assert max(one_by_one) > 1.8 * sum(one_by_one) / size


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_any_dimension(dim):
    whole = torch.arange(12).reshape([12 if each == dim % 2 else 1 for each in range(2)])
    parts = [whole.index_select(dim, places_of(rank, 4, 3, "zigzag")) for rank in range(3)]
    assert torch.equal(in_order(torch.cat(parts, dim), dim % 2, 12, 3, "zigzag"), whole)
