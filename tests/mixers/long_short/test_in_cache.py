"""Inference on a CPU against the reference where its shortcuts end: large scores, half tiles, many heads at once."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer
from remixer.mixers.long_short import dispatch, summaries
from remixer.mixers.long_short.exponentials import in_range
from remixer.mixers.long_short.pool_in_cache import pool_in_cache
from remixer.mixers.long_short.summaries import pool
from remixer.mixers.long_short.windows import Tiling
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4)


@pytest.fixture(autouse=True)
def without_compiled_code(monkeypatch):
    monkeypatch.setattr(dispatch, "usable_in_c", lambda *operands: False)
    monkeypatch.setattr(summaries, "poolable_in_c", lambda *operands: False)


def mixer_of(config, **changes):
    torch.manual_seed(0)
    mixer = LongShortMixer(dataclasses.replace(SPEC, **changes), config).double()
    if mixer.summary_bias is not None:
        torch.nn.init.normal_(mixer.summary_bias)
    return mixer.eval()


def operands(T, B=2, dtype=torch.float64):
    torch.manual_seed(T)
    return [torch.randn(B, heads, T, size, dtype=dtype) for heads, size in ((4, 8), (2, 8), (2, 6))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("softcap", [None, 700.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_scores_of_any_size(causal, softcap, size):
    # The largest of these are far beyond what an exponential of float64 takes, the smallest nearly equal.
    mixer = mixer_of(LongShort(window=8, segment=4, rank=2, sinks=3), causal=causal, softcap=softcap)
    query, key, value = operands(75)
    inputs = (query * size, key * size, value)
    expected = mixer.reference(*inputs).detach()
    with torch.no_grad():
        assert_close(mixer(*inputs), expected)
        assert_close(mixer(*inputs, padding=torch.ones(2, 75, dtype=torch.bool)), expected)


@pytest.mark.parametrize("shift", [-400.0, 400.0])
def test_rows_whose_scores_are_all_far_from_0(shift):
    mixer = mixer_of(LongShort(window=8, rank=0, sinks=0))
    query, key, value = operands(40)
    query[..., 0], key[..., 0] = 1.0, shift / mixer.spec.scale
    with torch.no_grad():
        assert_close(mixer(query, key, value), mixer.reference(query, key, value))


def test_float32_loses_nothing_up_to_where_the_largest_score_is_subtracted():
    mixer, exact = mixer_of(LongShort(window=8, rank=2)).float(), mixer_of(LongShort(window=8, rank=2))
    for size in (1.0, 2.0, 3.0, 4.0):
        query, key, value = operands(75, dtype=torch.float32)
        with torch.no_grad():
            expected = exact((query * size).double(), (key * size).double(), value.double())
            assert_close(mixer(query * size, key * size, value), expected.float())


@pytest.mark.parametrize("window", [64, 65, 72, 80])
@pytest.mark.parametrize("memory", [2, 40, "dyadic", None])
@pytest.mark.parametrize("segment", [1, 3, 8, 12])
def test_half_tiles_of_causal_windows(window, memory, segment):
    config = LongShort(window=window, segment=segment, memory=memory, per_size=3, rank=2, sinks=3)
    mixer = mixer_of(config, causal=True, kv_heads=4)
    query, key, value = (x.repeat_interleave(4 // x.shape[1], 1) for x in operands(331, 1))
    padding = torch.arange(331)[None] >= 17
    for mask in (None, padding):
        expected = mixer(query, key, value, padding=mask).detach()
        with torch.no_grad():
            assert_close(mixer(query, key, value, padding=mask), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_nothing_give_0(causal):
    mixer = mixer_of(LongShort(window=8, rank=0, sinks=0), causal=causal)
    inputs = operands(50)
    padding = torch.zeros(2, 50, dtype=torch.bool)
    padding[0, 30:] = True
    with torch.no_grad():
        mixed = mixer(*inputs, padding=padding)
    assert_close(mixed, mixer.reference(*inputs, padding=padding))
    assert float(mixed[1].abs().max()) == 0.0
    assert float(mixed[0, :, :20].abs().max()) == 0.0


def test_pooling_that_is_too_uneven_is_left_to_the_softmax():
    torch.manual_seed(0)
    pooling, key, value = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((2, 8, 3), (2, 2, 40, 8), (2, 2, 40, 6))
    )
    assert pool_in_cache(pooling, key, key, value, None) is not None
    assert pool_in_cache(200 * pooling, key, key, value, None) is None
    expected = pool(200 * pooling, key.requires_grad_(), key, value, None, None)
    with torch.no_grad():
        assert_close(pool(200 * pooling, key, key, value, None, None)[0], expected[0].detach())


def test_in_range():
    assert in_range(torch.tensor([1.0, 2.0**80]))
    for bad in (0.0, float("inf"), float("nan"), 2.0**100, 2.0**-100):
        assert not in_range(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("T", [1, 7, 8, 9, 30, 33])
def test_windows_in_cache_are_the_windows(heads, T):
    tokens = torch.randn(1, heads, T, 2)
    for tiling in (Tiling(4, 4, 0), Tiling(8, 4, 4), Tiling(4, 9, 0), Tiling(T, 0, 0)):
        for first, stop in tiling.runs(T, 2):
            found = tiling.keys_in_cache(tokens, first, stop, torch.float64, "keys")
            assert torch.equal(found, tiling.keys(tokens, first, stop).double())


def test_runs_are_even():
    assert list(Tiling(4, 0, 0).runs(37, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(Tiling(4, 0, 0).runs(36, 8)) == [(0, 5), (5, 9)]
