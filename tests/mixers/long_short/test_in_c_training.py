"""Compiled training: values and gradients beside those of all tiles at once."""

import dataclasses

import pytest
import torch
from trained import operands, random_mixer

from remixer.mixers import AttentionSpec, LongShort
from remixer.mixers.long_short import compiled_attention, dispatch, in_c_training
from remixer.mixers.long_short.compiled_attention import GRADIENTS
from remixer.mixers.long_short.in_c_training import trainable_in_c
from remixer.mixers.long_short.sight import Tokens
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4)
pytestmark = pytest.mark.skipif(not GRADIENTS.there(torch.float32), reason="no C compiler")


def mixer_of(config, **changes):
    return random_mixer(SPEC, config, **changes)


def both(mixer, inputs, padding, monkeypatch, wanted=None):
    """Output and gradients by compiled code, and by all tiles at once."""
    found = []
    wanted = [*inputs, *mixer.parameters()] if wanted is None else wanted
    for compiled in (True, False):
        torch.manual_seed(1)
        asked = []
        monkeypatch.setattr(
            dispatch,
            "trainable_in_c",
            lambda *given, on=compiled, asked=asked: asked.append(trainable_in_c(*given)) or on,
        )
        monkeypatch.setattr(dispatch, "trainable_by_parts", lambda *given: False)
        mixed = mixer(*inputs, padding=padding)
        assert asked == [True]
        found.append((mixed, *torch.autograd.grad(mixed, wanted, torch.randn(mixed.shape, dtype=mixed.dtype))))
    return found


CONFIGS = [
    LongShort(window=8, rank=2, sinks=0),
    LongShort(window=8, rank=40, sinks=2),
    LongShort(window=8, segment=4, rank=2, sinks=3),
    LongShort(window=64, segment=4, rank=1, memory=3, sinks=1),
    LongShort(window=64, segment=12, rank=2, memory="dyadic", per_size=3),
    LongShort(window=12, segment=4, memory=None, counted=False),
    LongShort(window=8, rank=0, sinks=0),
    LongShort(window=7, segment=3, rank=2, maps=True),
    LongShort(window=65, segment=3, memory=40, sinks=2),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [12, 65, 203])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_the_same_as_all_tiles_at_once(config, T, causal, monkeypatch):
    mixer = mixer_of(config, causal=causal)
    T = T + config.window
    inputs = operands(T, mixer.spec)
    padding = torch.ones(2, T, dtype=torch.bool)
    padding[0, : T // 2], padding[1, 5:8], padding[1, -9:] = False, False, False
    for mask in (None, padding):
        for ours, theirs in zip(*both(mixer, inputs, mask, monkeypatch), strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (6, 2), (40, 1)])
@pytest.mark.parametrize(("size", "value_size"), [(1, 1), (5, 12), (31, 64), (80, 3), (33, 33)])
def test_heads_and_sizes(heads, kv_heads, size, value_size, monkeypatch):
    changes = {"heads": heads, "kv_heads": kv_heads, "head_dim": size, "value_dim": value_size, "causal": True}
    mixer = mixer_of(LongShort(window=8, segment=4, sinks=2), **changes)
    for ours, theirs in zip(*both(mixer, operands(35, mixer.spec, 1), None, monkeypatch), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("causal", [False, True])
def test_float32(causal, monkeypatch):
    mixer = mixer_of(LongShort(window=64, segment=8), causal=causal).float()
    inputs = operands(333, mixer.spec, 1, torch.float32)
    for ours, theirs in zip(*both(mixer, inputs, None, monkeypatch), strict=True):
        assert_close(ours, theirs)


def test_more_columns_than_are_scored_at_once(monkeypatch):
    mixer = mixer_of(LongShort(window=500, segment=2, memory=None), causal=True)
    for ours, theirs in zip(*both(mixer, operands(901, mixer.spec, 1), None, monkeypatch), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parts_of_a_sequence_are_added_up(threads, monkeypatch):
    monkeypatch.setattr(in_c_training, "LEAST_PART", 10)
    mixer, before = mixer_of(LongShort(window=16, segment=4, sinks=2), causal=True, kv_heads=1), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for ours, theirs in zip(*both(mixer, operands(203, mixer.spec, 1), None, monkeypatch), strict=True):
            assert_close(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_operands_alone(kept, monkeypatch):
    mixer = mixer_of(LongShort(window=16, segment=4), causal=True)
    inputs = [each.detach().requires_grad_(place in kept) for place, each in enumerate(operands(130, mixer.spec))]
    wanted = [inputs[place] for place in kept]
    for ours, theirs in zip(*both(mixer, inputs, None, monkeypatch, wanted), strict=True):
        assert_close(ours, theirs)


def test_the_mixers_parameters_alone_and_no_gradients_of_a_window_that_nobody_trains(monkeypatch):
    mixer = mixer_of(LongShort(window=16, segment=4), causal=True)
    inputs = [each.detach() for each in operands(130, mixer.spec)]
    differentiated, right = [], in_c_training.attend_backward
    monkeypatch.setattr(
        in_c_training,
        "attend_backward",
        lambda query, groups, *rest: differentiated.extend(groups) or right(query, groups, *rest),
    )
    for ours, theirs in zip(*both(mixer, inputs, None, monkeypatch, [*mixer.parameters()]), strict=True):
        assert_close(ours, theirs)
    (summaries,) = differentiated
    assert summaries.key.shape[2] < 130


@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_nothing_give_0_and_gradients_of_0(causal):
    mixer = mixer_of(LongShort(window=8, rank=0, sinks=0), causal=causal)
    inputs = operands(50, mixer.spec)
    padding = torch.zeros(2, 50, dtype=torch.bool)
    padding[0, 30:] = True
    mixed = mixer(*inputs, padding=padding)
    assert float(mixed[1].detach().abs().max()) == 0.0
    for gradient in torch.autograd.grad(mixed.sum(), inputs):
        assert float(gradient[1].abs().max()) == 0.0
        assert torch.isfinite(gradient).all()


def test_scores_of_any_size(monkeypatch):
    mixer = mixer_of(LongShort(window=8, segment=4, rank=2, sinks=3), causal=True)
    for size in (1e-3, 30.0):
        query, key, value = operands(75, mixer.spec)
        inputs = [(query * size).detach().requires_grad_(), (key * size).detach().requires_grad_(), value]
        for ours, theirs in zip(*both(mixer, inputs, None, monkeypatch), strict=True):
            assert_close(ours, theirs)


def test_what_it_does_not_take():
    mixer = mixer_of(LongShort(window=8, sinks=0))
    query, key, value = operands(20, mixer.spec)
    keys, values, spec = Tokens(key), Tokens(value), mixer.spec
    assert trainable_in_c(query, keys, values, spec, None, 0.0)
    assert not trainable_in_c(query, keys, values, spec, torch.zeros(4, 39), 0.0)
    assert not trainable_in_c(query, keys, values, spec, None, 0.1)
    assert not trainable_in_c(query, keys, values, dataclasses.replace(spec, softcap=3.0), None, 0.0)
    assert not trainable_in_c(query.bfloat16(), Tokens(key.bfloat16()), Tokens(value.bfloat16()), spec, None, 0.0)
    assert not trainable_in_c(query.float(), keys, values, spec, None, 0.0)
    with torch.no_grad():
        assert not trainable_in_c(query, keys, values, spec, None, 0.0)


def test_wrong_code_is_found_out_and_not_used(monkeypatch):
    GRADIENTS.forget()
    right = compiled_attention.attend_backward

    def wrong(query, groups, scale, *rest):
        right(query, groups, scale * 1.01, *rest)

    monkeypatch.setattr(compiled_attention, "attend_backward", wrong)
    with pytest.warns(UserWarning, match="gradient of attention is .* off here and is not used"):
        assert not GRADIENTS.proven(torch.float32)
    GRADIENTS.forget()
