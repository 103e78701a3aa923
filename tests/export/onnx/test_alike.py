"""What counts as the same code with other weights."""

import copy

import pytest
import torch
from torch import nn

from remixer.export.onnx.alike import alike
from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, Toeplitz, ToeplitzMixer

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.3, causal=True)


def long_short(**options):
    return LongShortMixer.from_attention(SPEC, LongShort(window=8, segment=4, **options))


def test_other_weights_make_no_difference():
    one, other = long_short(), long_short()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    assert alike(one, other)


def test_what_a_mixer_keeps_of_before_makes_no_difference():
    one = ToeplitzMixer.from_attention(SPEC, Toeplitz()).eval()
    other = copy.deepcopy(one)
    with torch.no_grad():
        other(value=torch.randn(1, 2, 300, 8))
    assert alike(one, other)


@pytest.mark.parametrize(
    "other",
    [
        long_short(sinks=1),
        long_short(dual_norm="paper"),
        LongShortMixer.from_attention(SPEC, LongShort(window=9, segment=4)),
        ToeplitzMixer.from_attention(SPEC, Toeplitz()),
        long_short().double(),
        long_short().eval(),
    ],
    ids=["option", "weights", "config", "class", "dtype", "mode"],
)
def test_others_are_not_alike(other):
    assert not alike(long_short(), other)


def test_children_count_too():
    one, other = (nn.Sequential(nn.Linear(2, 2), nn.Dropout(p)) for p in (0.1, 0.2))
    assert alike(one, copy.deepcopy(one))
    assert not alike(one, other)
