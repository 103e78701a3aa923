"""Token by token, every mixer that can gives what it gives for the whole sequence."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, get
from remixer.mixers.errors import NoStepError
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.4, source_dim=5, padding=True, causal=True)
CASES = [
    ("long_short", config)
    for config in (
        LongShort(window=8, segment=4, memory=3),
        LongShort(window=7, rank=3, segment=3, memory=None, sinks=2),
        LongShort(window=6, rank=2, segment=9, sinks=0, counted=False, dual_norm="paper", project_from="source"),
        LongShort(window=16, rank=2, segment=2, memory=1, dual_norm="per_head"),
        LongShort(window=1, rank=0),
        LongShort(window=5, segment=2, memory="dyadic", per_size=2, rank=2),
        LongShort(window=4, segment=1, memory="dyadic", per_size=1, sinks=1, counted=False),
        LongShort(window=9, segment=3, memory="dyadic", per_size=3),
        LongShort(window=8, segment=2, retrieve=2, retrieve_block=4, memory=3),
        LongShort(window=6, segment=3, retrieve=3, retrieve_block=1, memory="dyadic", per_size=2, rank=2, sinks=2),
        LongShort(window=4, segment=4, retrieve=1, retrieve_block=2, rank=0),
    )
]
each_case = pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else repr(x)[:90])


def mixer_for(name, config, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    mixer = get(name)(dataclasses.replace(SPEC, dtype=dtype, **changes), config)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype).eval()


def operands_for(mixer, T, B):
    spec = mixer.spec
    shapes = {
        "query": (B, spec.heads, T, spec.head_dim),
        "key": (B, spec.kv_heads, T, spec.head_dim),
        "value": (B, spec.kv_heads, T, spec.value_dim),
        "source": (B, T, spec.source_dim),
    }
    return {name: torch.randn(shape).to(spec.dtype) for name, shape in shapes.items() if name in mixer.operands}


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


def padding_for(kind, B, T):
    if kind == "none":
        return None
    position, row = torch.arange(T)[None], torch.arange(B)[:, None]
    if kind == "holes":
        return torch.rand(B, T) > 0.4
    return position >= T // 3 + row if kind == "left" else position < T - T // 3 - row


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
