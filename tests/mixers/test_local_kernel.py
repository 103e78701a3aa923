"""Long sequences block by block: the same numbers as one transform, and as the dense matrix."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, Toeplitz, ToeplitzMixer
from remixer.mixers.convolution_in_c import convolvable_in_c
from remixer.mixers.local_kernel import LocalKernel, blocks_of, length_of_blocks, less_work
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=3, value_dim=3, scale=1.0, padding=True)
OPTIONS = [
    {"decay": 0.3},
    {"decay": 0.3, "normalise": False},
    {"decay": 0.2, "per": "head"},
    {"decay": 0.1, "learn_decay": True, "normalise": False},
]


@pytest.fixture(autouse=True, params=[False, True], ids=["torch", "compiled"])
def small_blocks(monkeypatch, request):
    if not request.param:
        monkeypatch.setattr("remixer.mixers.toeplitz_operator.convolvable_in_c", lambda *operands: False)
    monkeypatch.setattr("remixer.mixers.toeplitz_operator.LONG", 64)
    monkeypatch.setattr("remixer.mixers.toeplitz_operator.REACHES", 2)
    monkeypatch.setattr("remixer.mixers.toeplitz_operator.LONG_IN_C", 64)
    monkeypatch.setattr("remixer.mixers.local_kernel.SHORTEST_TRANSFORM", 64)
    monkeypatch.setattr("remixer.mixers.local_kernel.ENTRIES_AT_ONCE", 4000)


def mixer_of(options, causal):
    torch.manual_seed(0)
    mixer = ToeplitzMixer(dataclasses.replace(SPEC, causal=causal), Toeplitz(**options)).eval()
    if mixer.decay is not None:
        torch.nn.init.constant_(mixer.decay.raw, -2.0)
    return mixer


def padding_for(kind, T):
    if kind == "holes":
        return torch.rand(2, T) > 0.4
    return None if kind == "none" else torch.arange(T) >= torch.tensor([[T // 3], [0]])


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padding", ["none", "left", "holes"])
def test_blocks_are_the_whole(options, causal, padding, monkeypatch):
    mixer = mixer_of(options, causal)
    for T in (1100, 1303):
        value, mask = torch.randn(2, 2, T, 3), padding_for(padding, T)
        with torch.no_grad():
            assert mixer._local_kernel(value) is not None
            for _ in range(2):  # the second time from what was kept
                mixed = mixer(value=value, padding=mask)
            expected = mixer.double().reference(value=value.double(), padding=mask).float()
            mixer.float()
        assert_close(mixed, expected, where=None if mask is None else mask[:, None].expand(-1, 4, -1))


def test_the_comparison_can_fail():
    mixer = mixer_of({"decay": 0.3}, False)
    value = torch.randn(1, 2, 900, 3)
    with torch.no_grad():
        mixed = mixer(value=value)
        value[0, 0, 450] += 1e-3
        with pytest.raises(AssertionError, match="largest error"):
            assert_close(mixer(value=value), mixed)


def test_the_reach_leaves_out_nothing_but_zeros():
    for options in OPTIONS:
        mixer = mixer_of(options, True)
        reach = mixer.reach(torch.float32)
        with torch.no_grad():
            assert mixer.coefficients(reach + 200)[..., reach:].eq(0.0).all()


def test_the_rounded_reach_leaves_out_what_rounding_hides():
    for options in OPTIONS:
        mixer = mixer_of(options, True)
        rounded, reach = mixer.reach(torch.float32, rounded=True), mixer.reach(torch.float32)
        if not mixer.normalise:
            assert rounded == reach
            continue
        assert rounded < reach
        with torch.no_grad():
            coefficients = mixer.coefficients(reach)
        largest = coefficients.amax(-1, keepdim=True)
        left_out = coefficients[..., rounded:].double().sum(-1, keepdim=True)
        assert (left_out <= torch.finfo(torch.float32).eps / 1000 * largest).all()


def test_without_decay_everything_is_in_reach():
    for decay in (None, 1.0):
        assert mixer_of({"decay": decay}, False).reach(torch.float32) is None


def test_training_sees_the_whole_sequence():
    mixer = mixer_of({"decay": 0.3}, False)
    value = torch.randn(1, 2, 900, 3)
    assert mixer._local_kernel(value) is None  # gradients are wanted
    with torch.no_grad():
        assert mixer.train()._local_kernel(value) is None


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [1, 2, 300, 4230, 100_000])
def test_compiled_blocks_make_more_rows_than_they_lose_and_fit_a_cache(reach, causal):
    beside = (reach - 1) * (1 if causal else 2)
    for tokens in (1000, 2**15, 2**20):
        length = length_of_blocks(tokens, reach, causal)
        assert length > 2 * beside or length >= tokens + reach - 1, "the latter makes all rows"
        assert length <= max(2**16, 4 * beside)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("length", [384, 320, 256, 192, 96, 90, 64])
def test_blocks_of_any_length_and_none_at_all(length, normalise, causal):
    T, reach = 240, 17
    coefficients = torch.rand(2, 3, reach if causal else 2 * reach - 1, dtype=torch.float64)
    values = torch.randn(2, 2, T, 3, dtype=torch.float64)
    offsets = torch.arange(T)[:, None] - torch.arange(T)  # how far a key is in the past
    place = offsets if causal else offsets + reach - 1
    seen = (offsets < reach) & (offsets >= (0 if causal else 1 - reach))
    matrix = coefficients[..., place.clamp(0, coefficients.shape[-1] - 1)] * seen
    if normalise:
        matrix = matrix / matrix.sum(-1, keepdim=True)
    assert (blocks_of(length, T, reach, causal).step == T) == (length >= 256), "which holds them to the last"
    with torch.no_grad():
        if not convolvable_in_c(values, 2):
            pytest.skip("no compiler")
        kernel = LocalKernel.of(coefficients, causal, normalise, compiled_length=length)
        expected = torch.einsum("hets,bhse->bhte", matrix, values)
        assert_close(kernel.times(values), expected)
        with pytest.raises(AssertionError, match="largest error"):
            assert_close(kernel.times(values), expected + 1e-6)


@pytest.mark.parametrize("tokens", [2, 4095, 8192, 16384, 50_000])
def test_a_reach_saves_work_where_it_is_shorter_than_the_sequence(tokens):
    for causal in (False, True):
        length = length_of_blocks(tokens, 3800, causal)
        assert less_work(tokens, length, 3800, causal) == (tokens >= 8192)
