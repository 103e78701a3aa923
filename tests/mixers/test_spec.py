import dataclasses

import pytest

from remixer.mixers import AttentionSpec

SPEC = AttentionSpec(heads=8, kv_heads=2, head_dim=64, value_dim=64, scale=0.125)


def test_heads_share_key_value_heads():
    assert SPEC.groups == 4


@pytest.mark.parametrize(
    ("changes", "windowed"),
    [
        ({}, False),
        ({"causal": True, "window": (None, 0)}, False),
        ({"causal": True, "window": (7, 0)}, True),
        ({"window": (None, 3)}, True),
        ({"window": (3, None)}, True),
    ],
)
def test_windowed_is_more_than_causal(changes, windowed):
    assert dataclasses.replace(SPEC, **changes).windowed == windowed


def test_in_words():
    spec = dataclasses.replace(SPEC, window=(4, None), padding=True, bias="offset", softcap=30.0, dropout=0.1)
    assert str(spec) == (
        "8 heads on 2 of 64, bidirectional, window 4 before, all after, padding, offset bias, softcap 30, "
        "dropout 0.1, scale 0.125"
    )


def test_a_bias_that_skips_padding_says_so():
    spec = dataclasses.replace(SPEC, bias="offset", skips_padding=True)
    assert "offset bias by existing keys" in str(spec)
    assert "existing" not in str(dataclasses.replace(spec, skips_padding=False))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cross": True}, "64, cross, scale"),
        ({"cross": True, "causal": True}, "64, cross, causal, scale"),
        ({"cross": True, "causal": True, "alignment": "end"}, "64, cross, causal, aligned at the end, scale"),
        ({"causal": True}, "64, causal, scale"),
        ({"padding": True, "pads_queries": True}, "64, bidirectional, padding of keys and queries, scale"),
    ],
)
def test_sequences_in_words(changes, words):
    assert words in str(dataclasses.replace(SPEC, **changes))


def test_specs_are_values():
    assert dataclasses.replace(SPEC) == SPEC
    assert hash(SPEC) == hash(dataclasses.replace(SPEC))
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.heads = 1
