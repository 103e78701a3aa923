"""Tensors that grow in their own memory give what joining them gives."""

import copy
import io

import pytest
import torch

from remixer.mixers.growing import ROOM, grown, latest


def tokens(count, rows=2):
    return torch.randn(rows, 3, count, 4)


@pytest.fixture(autouse=True)
def plain():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("portions", [[1] * 30, [5, 1, ROOM, 1, 1, 300, 1], [ROOM + 7, 2]], ids=len)
def test_they_hold_all_tokens(portions):
    whole = have = tokens(0)
    moves = 0
    for portion in portions:
        new, before = tokens(portion), (have, have.clone())
        have, whole = grown(have, new), torch.cat([whole, new], 2)
        moves += have.data_ptr() != before[0].data_ptr()
        assert torch.equal(have, whole)
        assert torch.equal(*before)
    assert moves <= 1 + sum(portions) // ROOM


def test_two_texts_go_on_from_one():
    past = grown(tokens(0), tokens(6))
    a, b = tokens(1), tokens(1)
    first, second = grown(past, a), grown(past, b)
    assert first.data_ptr() == past.data_ptr() != second.data_ptr()
    assert torch.equal(first, torch.cat([past, a], 2))
    assert torch.equal(second, torch.cat([past, b], 2))
    assert torch.equal(grown(first, b)[:, :, :7], first)
    assert torch.equal(first, torch.cat([past, a], 2))


def test_a_window_moves_on_in_its_memory():
    whole, have = tokens(9), None
    have = latest(grown(tokens(0), whole), 5)
    start = have.untyped_storage().data_ptr()
    for _ in range(20):
        new = tokens(1)
        whole, have = torch.cat([whole, new], 2), latest(grown(have, new), 5)
        assert torch.equal(have, whole[:, :, -5:])
    assert have.untyped_storage().data_ptr() == start


def test_foreign_memory_is_left_alone():
    joined = torch.randn(1, 1, 8, 4)
    before = joined.clone()
    past = joined[:, :, :3]
    assert torch.equal(grown(past, tokens(1)[:1, :1])[:, :, :3], past)
    assert torch.equal(joined, before)
    assert torch.equal(latest(joined, 2), joined[:, :, 6:])


def test_copies_go_on_by_themselves():
    past, a, b = grown(tokens(0), tokens(6)), tokens(1), tokens(1)
    file = io.BytesIO()
    torch.save(past, file)
    file.seek(0)
    for other in (copy.deepcopy(past), torch.load(file), past.clone()):
        kept = grown(past, a)
        assert torch.equal(grown(other, b), torch.cat([past, b], 2))
        assert torch.equal(kept, torch.cat([past, a], 2))


def test_gradients_flow():
    with torch.enable_grad():
        past, new = tokens(2).requires_grad_(), tokens(1)
        grown(grown(past, new), new).sum().backward()
    assert torch.equal(past.grad, torch.ones_like(past))
