"""Token by token, every mixer that can gives what it gives for the whole sequence."""

import pytest
import torch
from streamed import CASES, SPEC, mixer_for, operands_for, padding_for

from remixer.mixers import LongShort, LongShortMixer, get
from remixer.mixers.errors import NoStepError
from remixer.testing import assert_close

each_case = pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else repr(x)[:90])


def stepped(mixer, tensors, padding, bias=None, length=None):
    """All tokens one by one."""
    like = tensors["value"]
    T = like.shape[2]
    state = mixer.initial_state(like.shape[0], length or T, like)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    rows = []
    for t in range(T):
        one = {name: tensor[..., t : t + 1, :] for name, tensor in tensors.items()}
        mask = None if padding is None else padding[:, t : t + 1]
        out, state = mixer.step(state, **one, padding=mask, bias=bias)
        assert {name: tensor.shape for name, tensor in state.items()} == shapes
        rows.append(out)
    return torch.cat(rows, 2)


@each_case
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("trained", [True, False], ids=["grad", "no_grad"])
def test_steps_are_the_whole(name, config, padding, trained):
    for T, B, kv_heads in ((1, 1, 2), (5, 2, 4), (83, 2, 1)):
        mixer = mixer_for(name, config, kv_heads=kv_heads)
        tensors, mask = operands_for(mixer, T, B), padding_for(padding, B, T)
        with torch.set_grad_enabled(trained):
            assert_close(stepped(mixer, tensors, mask), mixer(**tensors, padding=mask))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_steps_in_lower_precision(name, config, dtype):
    mixer = mixer_for(name, config, dtype)
    tensors = operands_for(mixer, 60, 2)
    with torch.no_grad():
        mixed = stepped(mixer, tensors, None)
        assert mixed.dtype == dtype
        assert_close(mixed, mixer(**tensors))


@each_case
@pytest.mark.parametrize("changes", [{"softcap": 2.0}, {"window": (3, 0)}], ids=["softcap", "window"])
def test_steps_of_capped_and_windowed_attention(name, config, changes):
    mixer = mixer_for(name, config, **changes)
    tensors, mask = operands_for(mixer, 40, 2), padding_for("left", 2, 40)
    with torch.no_grad():
        assert_close(stepped(mixer, tensors, mask), mixer(**tensors, padding=mask))


@each_case
@pytest.mark.parametrize("skips", [False, True], ids=["by_place", "by_existing"])
def test_steps_with_a_bias_by_offset(name, config, skips):
    mixer = mixer_for(name, config, bias="offset", skips_padding=skips)
    tensors, mask = operands_for(mixer, 50, 2), padding_for("left", 2, 50)
    bias = torch.randn(4, 99, dtype=torch.float64)
    with torch.no_grad():
        assert_close(stepped(mixer, tensors, mask, bias), mixer(**tensors, padding=mask, bias=bias))


@each_case
def test_a_step_exports_and_its_state_may_be_longer(name, config):
    mixer = mixer_for(name, config)
    tensors = operands_for(mixer, 30, 2)
    state = mixer.initial_state(2, 100, tensors["value"])
    one = {key: tensor[..., :1, :] for key, tensor in tensors.items()}
    with torch.no_grad():
        program = torch.export.export(Step(mixer), (state, one)).module()
        rows = []
        for t in range(30):
            out, state = program(state, {key: tensor[..., t : t + 1, :] for key, tensor in tensors.items()})
            rows.append(out)
        assert_close(torch.cat(rows, 2), mixer(**tensors))


class Step(torch.nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, state, operands):
        return self.mixer.step(state, **operands)


def test_the_comparison_can_fail():
    mixer = mixer_for(*CASES[0])
    tensors = operands_for(mixer, 40, 1)
    whole = mixer(**tensors)
    tensors["key"][:, :, 3] += 1e-5
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(stepped(mixer, tensors, None), whole)


@pytest.mark.parametrize("name", ["long_short", "softmax"])
def test_what_needs_the_whole_sequence_says_so(name):
    mixer = mixer_for(name, get(name).Config(), causal=False)
    with pytest.raises(NoStepError, match=f"'{name}' can't go token by token"):
        mixer.initial_state(1, 10, torch.zeros(1))


def test_the_state_of_a_memory_that_forgets_does_not_grow():
    mixer = LongShortMixer(SPEC, LongShort())
    sizes = [
        sum(tensor.numel() for tensor in mixer.initial_state(1, length, torch.zeros(1)).values())
        for length in (4096, 2**20)
    ]
    assert sizes[0] == sizes[1]
    dyadic = LongShortMixer(SPEC, LongShort(memory="dyadic"))
    small, large = (dyadic.initial_state(1, length, torch.zeros(1))["mass"].shape for length in (2**12, 2**20))
    assert small[3] == large[3]
    assert large[2] == small[2] + 8
