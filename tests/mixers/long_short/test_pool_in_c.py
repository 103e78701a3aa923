"""Compiled pooling against the softmax written out: segments, whole sequences in parts, tokens that don't exist."""

import pytest
import torch

from remixer.mixers.long_short import pool_in_c, summaries
from remixer.mixers.long_short.pool_in_c import POOLING, poolable_in_c
from remixer.mixers.long_short.summaries import pool
from remixer.testing import assert_close

pytestmark = pytest.mark.skipif(not POOLING.there(torch.float32), reason="no C compiler")


@pytest.fixture
def both(monkeypatch):
    """`pool` by compiled code and by torch's operators."""

    def pooled(*operands, **options):
        with torch.no_grad():
            found = pool(*operands, **options)
        expected = pool(*(operands[0].detach().requires_grad_(), *operands[1:]), **options)  # with gradients: not in C
        return found, [each.detach() for each in expected]

    return pooled


def operands(S, B=2, G=3, D=5, E=7, rank=2, C=None, dtype=torch.float64):
    torch.manual_seed(S)
    shapes = ((G, C or D, rank), (B, 1 if C else G, S, C or D), (B, G, S, D), (B, G, S, E))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def paddings(S):
    place = torch.arange(S)
    return [None, torch.stack([place >= S // 2, place < S // 3]), torch.stack([place < S, place < 0])]


def seen(S, rank, segment, levels):
    """Which summaries lack no token; nobody sees the others."""
    if segment is None:
        return torch.ones(rank, dtype=torch.bool)
    nodes, whole = -(-S // segment), []
    for level in range(levels):
        whole.append(torch.arange(nodes) < S // (segment << level))
        nodes = (nodes + 1) // 2
    return torch.cat(whole).repeat_interleave(rank)


@pytest.mark.parametrize("source", [None, 11])
@pytest.mark.parametrize("rank", [1, 2, 20])
@pytest.mark.parametrize(("segment", "levels"), [(None, 1), (1, 1), (8, 1), (8, 3), (5, 2), (17, 1)])
@pytest.mark.parametrize("S", [1, 8, 41, 64])
def test_equals_the_softmax(both, S, segment, levels, rank, source):
    inputs = operands(S, rank=rank, C=source)
    for padding in paddings(S):
        found, expected = both(*inputs, padding, segment, levels)
        whole = seen(S, rank, segment, levels)
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine[:, :, whole], theirs[:, :, whole])


@pytest.mark.parametrize("longest", [1, 7, 64, 100])
def test_parts_of_a_whole_sequence_are_merged(both, monkeypatch, longest):
    monkeypatch.setattr(pool_in_c, "LONGEST", longest)
    for padding in paddings(100):
        found, expected = both(*operands(100), padding, None)
        assert_close(found, tuple(expected))


@pytest.mark.parametrize("segment", [None, 8])
def test_bfloat16_is_reckoned_with_in_float32(segment):
    inputs = operands(96, dtype=torch.bfloat16)
    exact = pool(*(each.double().requires_grad_() for each in inputs), None, segment)
    with torch.no_grad():
        found = pool(*inputs, None, segment)
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert_close(mine, theirs.detach().bfloat16())


@pytest.mark.parametrize("segment", [None, 8])
def test_logits_of_any_size_and_no_numbers(both, segment):
    pooling, reads, key, value = operands(40)
    for size in (1e-6, 1e3):
        found, expected = both(size * pooling, reads, key, value, None, segment)
        assert_close(found, tuple(expected))
    key[0, 0, 3] = float("nan")
    found, expected = both(pooling, reads, key, value, None, segment)
    assert torch.equal(found[0].isnan(), expected[0].isnan())
    assert found[0].isnan().any()


def test_strides_of_all_kinds(both):
    pooling, reads, key, value = operands(40)
    inputs = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (reads, key)]
    for segment in (None, 8):
        found, expected = both(pooling, *inputs, value.mT.contiguous().mT, None, segment)
        assert_close(found, tuple(expected))


def test_what_it_does_not_take():
    pooling, reads, key, value = operands(40)
    with torch.no_grad():
        assert poolable_in_c(pooling, reads, key, value)
        assert not poolable_in_c(pooling.float(), reads, key, value)
        assert not poolable_in_c(*(each.half() for each in (pooling, reads, key, value)))
    assert not poolable_in_c(pooling.requires_grad_(), reads, key, value)


def test_wrong_code_is_found_out_and_not_used(monkeypatch):
    right = pool_in_c.pool_segments_in_c

    def wrong(logits, *operands):
        return right(1.01 * logits, *operands)

    POOLING.forget()
    monkeypatch.setattr(pool_in_c, "pool_segments_in_c", wrong)
    with pytest.warns(UserWarning, match="compiled pooling is .* off here and is not used"):
        assert not POOLING.proven(torch.float64)
    POOLING.forget()


@pytest.mark.parametrize(("segment", "name"), [(None, "pool_whole_in_c"), (8, "pool_segments_in_c")])
def test_it_is_asked(monkeypatch, segment, name):
    asked, right = [], getattr(summaries, name)
    monkeypatch.setattr(summaries, name, lambda *operands: asked.append(operands) or right(*operands))
    with torch.no_grad():
        pool(*operands(40), None, segment)
    assert len(asked) == 1
