"""Compiled convolutions against torch's transforms: all lengths, channels, heads, cuts; and where they are used."""

import dataclasses
import math

import pytest
import torch

from remixer.mixers import AttentionSpec, FrequencyToeplitz, Toeplitz, ToeplitzMixer, convolution_in_c
from remixer.mixers.convolution import convolve, spectrum_of, toeplitz_reference
from remixer.mixers.convolution_in_c import (
    CONVOLUTION,
    Blocks,
    Spectrum,
    convolvable_in_c,
    convolve_in_c,
    length_in_c,
    transform_of,
)
from remixer.mixers.frequency_toeplitz import FrequencyToeplitzMixer
from remixer.testing import assert_close

pytestmark = pytest.mark.skipif(not CONVOLUTION.there(torch.float32), reason="no C compiler")
SPEC = AttentionSpec(heads=6, kv_heads=2, head_dim=5, value_dim=5, scale=1.0, padding=True)

LENGTHS = [2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20, 24, 30, 36, 48, 60, 64, 72, 96, 512, 768, 1280, 1920, 2304]


def spectrum_and_values(length, tokens, heads=4, kv_heads=2, channels=3, values=3, B=2, dtype=torch.float64):
    torch.manual_seed(length)
    coefficients = torch.randn(heads, channels, length, dtype=dtype)
    return torch.fft.rfft(coefficients, norm="forward"), torch.randn(B, kv_heads, tokens, values, dtype=dtype)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_length(length, dtype):
    for tokens in {1, length // 2, length}:
        spectrum, values = spectrum_and_values(length, tokens, dtype=dtype)
        expected = convolve(spectrum, values, length)
        assert_close(convolve_in_c(Spectrum.of(spectrum, length), values), expected)


@pytest.mark.parametrize(
    ("channels", "values"), [(1, 1), (1, 5), (7, 1), (7, 7), (16, 16), (33, 33), (64, 64), (70, 70)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (6, 2), (12, 1), (2, 2)])
def test_channels_and_heads(channels, values, heads, kv_heads):
    spectrum, tokens = spectrum_and_values(24, 11, heads, kv_heads, channels, values)
    assert_close(convolve_in_c(Spectrum.of(spectrum, 24), tokens), convolve(spectrum, tokens, 24))


@pytest.mark.parametrize("channels", [1, 3])
def test_factors_on_rows(channels):
    spectrum, values = spectrum_and_values(24, 11, channels=channels)
    rows = torch.rand(4, channels, 11, dtype=torch.float64)
    compiled = Spectrum.of(spectrum, 24)
    assert_close(convolve_in_c(compiled, values, compiled.scale_of(rows)), convolve(spectrum, values, 24, rows))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("end", [1, 5, 13])
@pytest.mark.parametrize("step", [4, 7, 26])
def test_factors_on_the_first_and_the_last_rows(step, end, channels):
    spectrum, values = spectrum_and_values(30, 26, channels=channels)
    blocks, compiled = Blocks(step, 2, 2), Spectrum.of(spectrum, 30)
    rows = torch.rand(4, channels, 2 * end, dtype=torch.float64)
    every = torch.cat([rows[..., :end], rows.new_ones(4, channels, 26 - 2 * end), rows[..., end:]], -1)
    expected = convolve_in_c(compiled, values, None, blocks) * every.transpose(1, 2)
    assert_close(convolve_in_c(compiled, values, compiled.scale_of(rows), blocks), expected)
    assert_close(convolve_in_c(compiled, values, compiled.scale_of(every), blocks), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [32, 31, 16, 8])
def test_results_that_outgrow_the_caches(channels, dtype):
    most = 2**22 // (2 * 4 * channels * 4)  # tokens in 4 MiB of float32, for two samples and four heads
    for tokens in (most - 1, most + 1):
        length = length_in_c(tokens)
        spectrum, values = spectrum_and_values(length, tokens, channels=channels, values=channels, dtype=dtype)
        expected = convolve(spectrum, values, length)
        compiled = Spectrum.of(spectrum, length)
        assert_close(convolve_in_c(compiled, values), expected)
        rows = torch.rand(4, channels, tokens, dtype=dtype)
        assert_close(convolve_in_c(compiled, values, compiled.scale_of(rows)), expected * rows.transpose(1, 2))


@pytest.mark.parametrize("tokens", [1, 9, 10, 11, 57])
@pytest.mark.parametrize("reach", [1, 3, 7])
def test_sequences_longer_than_the_transform(tokens, reach):
    torch.manual_seed(tokens)
    coefficients = torch.randn(4, 3, 2 * reach - 1, dtype=torch.float64)
    values = torch.randn(2, 2, tokens, 3, dtype=torch.float64)
    blocks = Blocks(24 - 2 * (reach - 1), reach - 1, 2 * (reach - 1))
    mixed = convolve_in_c(Spectrum.of(torch.fft.rfft(coefficients, 24, norm="forward"), 24), values, None, blocks)
    beyond = max(0, tokens - reach)
    whole = torch.nn.functional.pad(coefficients, (beyond, beyond))
    middle = whole.shape[2] // 2
    whole = whole[..., middle - tokens + 1 : middle + tokens]
    assert_close(mixed, toeplitz_reference(whole, values, False))


def test_strides_and_the_layout_of_the_result():
    spectrum, _ = spectrum_and_values(24, 11)
    values = torch.randn(2, 22, 2, 6, dtype=torch.float64).transpose(1, 2)[:, :, ::2, ::2]
    mixed = convolve_in_c(Spectrum.of(spectrum, 24), values)
    assert_close(mixed, convolve(spectrum, values, 24))
    assert mixed.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("kind", ["toeplitz", "frequency_toeplitz"])
@pytest.mark.parametrize("causal", [False, True])
def test_mixers_take_it(monkeypatch, kind, causal):
    asked = []
    monkeypatch.setattr("remixer.mixers.toeplitz_kernel.convolve_in_c", lambda *o: asked.append(o) or convolve_in_c(*o))
    spec = dataclasses.replace(SPEC, causal=causal)
    mixer = ToeplitzMixer(spec, Toeplitz()) if kind == "toeplitz" else FrequencyToeplitzMixer(spec, FrequencyToeplitz())
    mixer = mixer.double().eval()
    for T in (2, 64, 75):
        value, padding = torch.randn(2, 2, T, 5, dtype=torch.float64), torch.arange(T) >= torch.tensor([[T // 3], [0]])
        for mask in (None, padding):
            expected = mixer.reference(value=value, padding=mask).detach()
            with torch.no_grad():
                mixed = mixer(value=value, padding=mask)
            assert_close(mixed, expected, where=None if mask is None else mask[:, None].expand(-1, 6, -1))
    assert len(asked) >= 6


def test_what_it_does_not_take():
    value = torch.randn(1, 2, 300, 5)
    with torch.no_grad():
        assert convolvable_in_c(value, torch.get_num_threads())
        assert not convolvable_in_c(value, torch.get_num_threads() - 1)  # transforms of torch share out channels
        assert not convolvable_in_c(value.to(torch.complex64), 64)
    assert not convolvable_in_c(value.requires_grad_(), 64)


def test_without_the_code_mixers_give_the_same(monkeypatch):
    mixer = ToeplitzMixer(SPEC, Toeplitz()).double().eval()
    value = torch.randn(1, 2, 75, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = mixer(value=value)
        monkeypatch.setattr("remixer.mixers.toeplitz_operator.convolvable_in_c", lambda *operands: False)
        assert_close(mixer(value=value), expected)


def test_wrong_code_is_found_out_and_not_used(monkeypatch):
    monkeypatch.setattr(convolution_in_c, "convolve_in_c", lambda *operands: 1.01 * convolve_in_c(*operands))
    CONVOLUTION.forget()
    with pytest.warns(UserWarning, match="compiled convolution is .* off here and is not used"):
        assert not CONVOLUTION.proven(torch.float64)
    CONVOLUTION.forget()


def test_lengths_are_the_least_that_do():
    known = sorted(odd << twos for odd in (1, 3, 5, 9, 15) for twos in range(13) if odd << twos > 1)
    for least in range(1, 3000):
        length = length_in_c(least)
        assert length == next(each for each in known if each >= least)
        assert math.prod(transform_of(length, torch.float64).radices.tolist()) == length
    assert spectrum_of(torch.ones(1, 1, 3), length_in_c(5), True).shape == (1, 1, 3)
