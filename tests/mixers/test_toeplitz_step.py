"""Toeplitz mixers token by token give what they give for the whole sequence."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, Toeplitz, ToeplitzMixer
from remixer.mixers.errors import NoStepError, StateFullError
from remixer.testing import assert_close

CONFIGS = [
    Toeplitz(),
    Toeplitz(normalise=False),
    Toeplitz(gate="query", per="head", decay=None),
    Toeplitz(gate="value", per="head", normalise=False),
    Toeplitz(learn_decay=True, decay=0.9, gate="value"),
    Toeplitz(learn_decay=True, decay=0.9, per="head", normalise=False),
]
CONFIGS += [dataclasses.replace(config, decoding="state_space") for config in CONFIGS]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=repr)


def mixer_of(config, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    options = {"heads": 4, "kv_heads": 2, "head_dim": 5, "value_dim": 3, "scale": 0.4, "causal": True, **changes}
    mixer = ToeplitzMixer(AttentionSpec(dtype=dtype, **options), config)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype)


def operands_of(mixer, B, T):
    spec = mixer.spec
    query = torch.randn(B, spec.heads, T, spec.head_dim, dtype=torch.float64).to(spec.dtype)
    value = torch.randn(B, spec.kv_heads, T, spec.value_dim, dtype=torch.float64).to(spec.dtype)
    return query, value


def padding_of(kind, B, T):
    cut = (T // 3 + torch.arange(B)).clamp(max=T - 1)[:, None]
    kinds = {
        "left": torch.arange(T) >= cut,
        "right": torch.arange(T) < T - cut,
        "holes": torch.rand(B, T) > 0.5,
        "whole": (torch.arange(B)[:, None] != B - 1).expand(B, T),
    }
    return kinds.get(kind)


def token_by_token(mixer, query, value, padding, length):
    state, out = mixer.initial_state(len(value), length, value), []
    shapes = {name: entry.shape for name, entry in state.items()}
    for t in range(value.shape[2]):
        now = slice(t, t + 1)
        seen = None if padding is None else padding[:, now]
        step, state = mixer.step(state, query=query[:, :, now], value=value[:, :, now], padding=seen)
        out.append(step)
        assert {name: entry.shape for name, entry in state.items()} == shapes
    return torch.cat(out, 2)


@each_config
@pytest.mark.parametrize("trained", [True, False], ids=["grad", "no_grad"])
def test_every_step_is_forward(config, trained):
    with torch.set_grad_enabled(trained):
        for T, B, kv_heads, padding in (
            (1, 1, 2, "none"),
            (2, 3, 1, "whole"),
            (17, 3, 4, "left"),
            (16, 1, 2, "right"),
            (23, 3, 1, "holes"),
            (40, 2, 2, "none"),
        ):
            mixer = mixer_of(config, kv_heads=kv_heads).eval()
            (query, value), mask = operands_of(mixer, B, T), padding_of(padding, B, T)
            expected = mixer(query=query, value=value, padding=mask)
            for length in (T, T + 5):
                assert_close(token_by_token(mixer, query, value, mask, length), expected)


def test_the_comparison_can_fail():
    mixer = mixer_of(Toeplitz())
    query, value = operands_of(mixer, 1, 9)
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(token_by_token(mixer, query, value.flip(2), None, 9), mixer(query=query, value=value))


@each_config
@pytest.mark.parametrize("window", [0, 3, 90])
def test_a_window_stays_a_window(config, window):
    mixer = mixer_of(config, window=(window, 0))
    (query, value), mask = operands_of(mixer, 2, 21), padding_of("left", 2, 21)
    steps = token_by_token(mixer, query, value, mask, 21)
    assert_close(steps, mixer(query=query, value=value, padding=mask))
    if config.decoding == "ring":
        assert mixer.initial_state(2, 21, value)["values"].shape == (2, 2, min(window + 1, 21), 3)


@each_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_lower_precisions(config, dtype):
    mixer = mixer_of(config, dtype).eval()
    query, value = operands_of(mixer, 2, 50)
    with torch.no_grad():
        steps = token_by_token(mixer, query, value, None, 50)
        assert steps.dtype == dtype
        assert_close(steps, mixer(query=query, value=value))
        state = mixer.initial_state(2, 50, value)
        assert all(entry.dtype not in (torch.float16, torch.bfloat16) for entry in state.values())


@each_config
def test_gradients_are_those_of_forward(config):
    mixer = mixer_of(config)
    operands, mask = [each.requires_grad_() for each in operands_of(mixer, 2, 13)], padding_of("left", 2, 13)
    weight = torch.randn(2, 4, 13, 3, dtype=torch.float64)
    leaves = [*operands, *mixer.parameters()]
    outs = (
        token_by_token(mixer, *operands, mask, 13),
        mixer(query=operands[0], value=operands[1], padding=mask),
    )
    steps, whole = (
        torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True) for out in outs
    )
    assert_close(steps, whole)


def test_a_full_ring_forgets_the_oldest():
    for config in CONFIGS[:6]:
        mixer, windowed = mixer_of(config), mixer_of(config, window=(7, 0))
        (query, value), mask = operands_of(mixer, 2, 30), padding_of("holes", 2, 30)
        assert_close(token_by_token(mixer, query, value, mask, 8), windowed(query=query, value=value, padding=mask))


def test_a_full_state_space_says_so():
    mixer = mixer_of(Toeplitz(decoding="state_space"))
    query, value = operands_of(mixer, 1, 5)
    with pytest.raises(StateFullError, match=r"as many tokens as it has seen.*greater length"):
        token_by_token(mixer, query, value, None, 4)


def test_what_sees_the_future_has_no_step():
    mixer = mixer_of(Toeplitz(), causal=False)
    with pytest.raises(NoStepError, match="'toeplitz' can't go token by token here: the attention sees tokens to come"):
        mixer.initial_state(1, 4, torch.zeros(()))
    with pytest.raises(ValueError, match="got length 0"):
        mixer_of(Toeplitz()).initial_state(1, 0, torch.zeros(()))


def test_padded_tokens_contribute_nothing():
    for config in CONFIGS:
        mixer = mixer_of(config)
        (query, value), mask = operands_of(mixer, 3, 17), padding_of("holes", 3, 17)
        garbage = value.masked_fill(~mask[:, None, :, None], torch.nan)
        steps = token_by_token(mixer, query, garbage, mask, 17)
        assert torch.equal(steps, token_by_token(mixer, query, value, mask, 17))


class Step(torch.nn.Module):
    """A module of one step, as exporters want it."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, state, query, value, padding):
        return self.mixer.step(state, query=query, value=value, padding=padding)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[4], CONFIGS[6], CONFIGS[10]], ids=repr)
def test_one_exported_step_serves_every_position(config):
    mixer = mixer_of(config).eval()
    query, value = operands_of(mixer, 2, 9)
    padding = padding_of("left", 2, 9)
    with torch.no_grad():
        state = mixer.initial_state(2, 9, value)
        now = slice(0, 1)
        args = state, query[:, :, now], value[:, :, now], padding[:, now]
        program = torch.export.export(Step(mixer), args).module()
        out = []
        for t in range(9):
            now = slice(t, t + 1)
            step, state = program(state, query[:, :, now], value[:, :, now], padding[:, now])
            out.append(step)
        assert_close(torch.cat(out, 2), mixer(query=query, value=value, padding=padding))


def test_plain_inference_writes_in_place():
    for config in (Toeplitz(), Toeplitz(decoding="state_space")):
        mixer = mixer_of(config).eval()
        query, value = operands_of(mixer, 1, 2)
        with torch.no_grad():
            before = mixer.initial_state(1, 4, value)
            _, after = mixer.step(before, query=query[:, :, :1], value=value[:, :, :1])
        assert after["values"].data_ptr() == before["values"].data_ptr()


def test_coefficients_are_made_once_for_all_prompts(monkeypatch):
    mixer, made = mixer_of(Toeplitz()), []
    monkeypatch.setattr(mixer, "coefficients", lambda n, own=mixer.coefficients: made.append(n) or own(n))
    _, value = operands_of(mixer, 2, 5)
    with torch.inference_mode():
        first = mixer.initial_state(2, 9, value)["kernel"]
    with torch.no_grad():
        assert mixer.initial_state(1, 9, value)["kernel"] is first
        mixer.state_after(9, value=value)
        assert made == [9]
        mixer.encoder.last.bias.mul_(2.0)
        assert not torch.equal(mixer.initial_state(2, 9, value)["kernel"], first)
        mixer.initial_state(2, 8, value)
    assert made == [9, 9, 8]
    assert not first.is_inference()  # a step with gradients may read it
    assert mixer.initial_state(2, 8, value)["kernel"].requires_grad


def test_what_reaches_no_further_is_not_remembered():
    """Exactly: coefficients beyond are 0 in float32."""
    mixer = mixer_of(Toeplitz(decay=0.5), torch.float32).eval()
    assert mixer.remembers(500) == 500
    assert mixer.remembers(100_000) == 1024
    query, value = operands_of(mixer, 2, 1300)
    padding = padding_of("left", 2, 1300)
    with torch.no_grad():
        whole, short = (mixer.state_after(n, value=value, padding=padding) for n in (2000, mixer.remembers(2000)))
        assert (whole["values"].shape[2], short["values"].shape[2]) == (2000, 1024)
        for t in range(3):
            now = {"query": query[:, :, t : t + 1], "value": value[:, :, t : t + 1], "padding": padding[:, -1:]}
            (one, whole), (other, short) = mixer.step(whole, **now), mixer.step(short, **now)
            assert_close(other, one)


@pytest.mark.parametrize("config", [Toeplitz(decay=None), Toeplitz(decay=0.5, decoding="state_space")], ids=repr)
def test_all_are_remembered_where_coefficients_reach_all(config):
    assert mixer_of(config).remembers(100_000) == 100_000
