"""Toeplitz mixers without an FFT against themselves."""

import dataclasses

import pytest
import torch

from remixer.export.onnx.lowered_toeplitz import LoweredToeplitz
from remixer.mixers import AttentionSpec, FrequencyToeplitz, Toeplitz, get
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4)
CONFIGS = [
    Toeplitz(),
    Toeplitz(per="head", gate="query", decay=None),
    Toeplitz(normalise=False, gate="value"),
    Toeplitz(learn_decay=True, per="head", normalise=False),
    FrequencyToeplitz(gate="value"),
    Toeplitz(weigh="key", gate="value"),
    Toeplitz(weigh="key", per="head"),
]


def mixer_for(config, **changes):
    torch.manual_seed(0)
    mixer = get(config.name)(dataclasses.replace(SPEC, **changes), config).double().eval()
    for module in (mixer.gate, mixer.key_weights):
        if module is not None:
            torch.nn.init.normal_(module.weight)
    return mixer


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 200])
@torch.no_grad()
def test_it_gives_the_mixers_numbers(config, causal, T):
    mixer = mixer_for(config, causal=causal)
    shapes = {"query": (3, 4, T, 8), "key": (3, 2, T, 8), "value": (3, 2, T, 6)}
    given = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    holes = torch.rand(3, T) > 0.3
    holes[1] = True
    for tokens in (T,) if config.name == "frequency_toeplitz" else (None, T):
        lowered = LoweredToeplitz(mixer, tokens)
        for padding in (None, torch.ones(3, T, dtype=torch.bool), holes):
            exist = torch.ones(3, T, dtype=torch.bool) if padding is None else padding
            got, want = (each(**given, padding=padding).transpose(1, 2) for each in (lowered, mixer))
            assert_close(got, want, where=exist)


@torch.no_grad()
def test_windows_and_bfloat16():
    mixer = mixer_for(Toeplitz(), window=(5, 9))
    value = torch.randn(2, 2, 90, 6, dtype=torch.float64)
    assert_close(LoweredToeplitz(mixer, None)(value=value), mixer(value=value))
    low = mixer.to(torch.bfloat16)
    mixed = LoweredToeplitz(low, None)(value=value.bfloat16())
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed, low(value=value.bfloat16()))


def test_a_fixed_length_needs_no_encoder():
    names = {name for name, _ in LoweredToeplitz(mixer_for(Toeplitz()), 70).named_parameters()}
    assert names == set()
    assert any("encoder" in name for name, _ in LoweredToeplitz(mixer_for(Toeplitz()), None).named_parameters())
