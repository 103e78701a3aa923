"""Every mixer on a GPU is its own reference in float64 on a CPU: values, gradients, and token by token."""

import copy
import dataclasses

import pytest
import torch
from streamed import operands_for

from remixer.mixers import AttentionSpec, FrequencyToeplitz, LongShort, SoftmaxConfig, Toeplitz, get
from remixer.mixers.long_short import dispatch, flex
from remixer.testing import assert_close

# torch.compile warns of many things that are no concern of ours.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=16, value_dim=16, scale=0.25, source_dim=5, padding=True)
CONFIGS = [
    SoftmaxConfig(),
    Toeplitz(),
    Toeplitz(gate="value", weigh="key", decay=0.95, learn_decay=True),
    Toeplitz(gate="query", per="head", normalise=False),
    FrequencyToeplitz(),
    LongShort(window=32, segment=4, memory=3, maps=True),
    LongShort(window=24, rank=2, retrieve=2, segment=4, retrieve_block=8),
]
# These go through FlexAttention from 128 tokens on, compiled: for each of these options anew.
COMPILED = [
    LongShort(window=64),
    LongShort(window=40, segment=8, memory=3, rank=2),
    LongShort(window=24, segment=4, memory="dyadic", per_size=2, sinks=0),
    LongShort(window=32, rank=3, counted=False, dual_norm="paper", project_from="source"),
]
each_config = pytest.mark.parametrize("config", [*COMPILED, *CONFIGS], ids=lambda config: repr(config)[:70])
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def mixer_of(config, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    mixer = get(config.name).from_attention(dataclasses.replace(SPEC, dtype=dtype, **changes), config)
    with torch.no_grad():
        for parameter in mixer.parameters():  # nothing at its harmless start
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer.to(dtype).eval()


def operands_of(mixer, T, B, left=False):
    """Of a CPU."""
    return operands_for(mixer, T, B), torch.arange(T) >= torch.arange(1, B + 1)[:, None] * T // 5 if left else None


def values_and_gradients(function, mixer, tensors, padding):
    """Of tokens that exist; others may hold anything finite."""
    tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out = function(**tensors, padding=padding)
    assert out.isfinite().all()
    if padding is not None:
        out = out * padding[:, None, :, None]
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape) / out.shape[2]
    loss = (out * weight.to(out)).sum()
    leaves = [*tensors.values(), *mixer.parameters()]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [each.detach().cpu() for each in (out, *gradients)]


def assert_on_device_is_reference(mixer, device, T, B, left):
    tensors, padding = operands_of(mixer, T, B, left)
    exact = copy.deepcopy(mixer).double()
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    expected = values_and_gradients(exact.reference, exact, wide, padding)
    there = copy.deepcopy(mixer).to(device)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    mask = None if padding is None else padding.to(device)
    exist = torch.ones(B, T, dtype=torch.bool) if padding is None else padding
    found = values_and_gradients(there, there, moved, mask)
    with torch.no_grad():
        again = there(**moved, padding=mask).cpu() * exist[:, None, :, None]
    assert all(each.dtype == mixer.spec.dtype for each in found)
    assert_close(found, expected)
    assert_close(again, expected[0])


@each_direction
@each_config
def test_values_and_gradients(config, causal, device):
    for T, B, kv_heads, left in ((1, 1, 2, False), (37, 3, 1, True), (200, 2, 2, True), (517, 2, 4, False)):
        if T > 256 and getattr(config, "normalise", False):
            continue  # a transform in float32 is a digit short where rows are divided by small sums
        mixer = mixer_of(config, causal=causal, kv_heads=kv_heads)
        assert_on_device_is_reference(mixer, device, T, B, left)


@each_direction
@pytest.mark.parametrize("config", [*COMPILED[:2], *CONFIGS], ids=lambda config: repr(config)[:70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_lower_precision(config, causal, dtype, device):
    for T, B, left in ((37, 2, True), (200, 2, True), (389, 2, False)):
        if T > 256 and getattr(config, "normalise", False):
            continue
        assert_on_device_is_reference(mixer_of(config, dtype, causal=causal), device, T, B, left)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gpus_take_the_compiled_form(softcap, device, monkeypatch):
    taken = []

    def mix(query, *operands, **options):
        taken.append(query.shape[2])
        return flex.mix_by_blocks(query, *operands, **options)

    monkeypatch.setattr(dispatch, "mix_by_blocks", mix)
    mixer = mixer_of(COMPILED[1], causal=True, softcap=softcap)
    for T in (127, 128, 700):
        assert_on_device_is_reference(mixer, device, T, 1, False)
    assert taken == [128, 128, 700, 700]


@pytest.mark.parametrize("config", [*CONFIGS, COMPILED[1], COMPILED[2]], ids=lambda config: repr(config)[:70])
def test_steps_are_the_whole(config, device):
    mixer = mixer_of(config, causal=True).to(device)
    if config.name == "frequency_toeplitz":
        pytest.skip("its coefficients are those of a length")
    T, B = 140, 2
    tensors, padding = operands_of(mixer, T, B, True)
    tensors, padding = {name: tensor.to(device) for name, tensor in tensors.items()}, padding.to(device)
    with torch.no_grad():
        state, rows = mixer.initial_state(B, T, tensors["value"]), []
        for t in range(T):
            one = {
                name: each[:, t : t + 1] if name == "source" else each[:, :, t : t + 1]
                for name, each in tensors.items()
            }
            row, state = mixer.step(state, **one, padding=padding[:, t : t + 1])
            rows.append(row)
        whole, steps = mixer(**tensors, padding=padding), torch.cat(rows, 2)
    exist = padding.all(0).cpu()
    assert_close(steps.cpu()[:, :, exist], whole.cpu()[:, :, exist])


@pytest.mark.parametrize(
    "config", [Toeplitz(normalise=False), LongShort(window=32), SoftmaxConfig()], ids=lambda each: each.name
)
def test_compiled_for_any_length(config, device):
    mixer = mixer_of(config, causal=True).to(device)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for T in (300, 517):
            tensors, padding = operands_of(mixer, T, 2, True)
            tensors, mask = {name: tensor.to(device) for name, tensor in tensors.items()}, padding.to(device)
            exist = padding.all(0)
            found, expected = compiled(**tensors, padding=mask), mixer(**tensors, padding=mask)
            assert_close(found.cpu()[:, :, exist], expected.cpu()[:, :, exist])


def test_the_comparison_can_fail(device, monkeypatch):
    mask_of = flex.mask_of

    def shifted(whole, positions):
        return lambda b, h, q, column: mask_of(whole, positions)(b, h, q, column + 1)

    monkeypatch.setattr(flex, "mask_of", shifted)
    with pytest.raises(AssertionError, match="largest error"):
        assert_on_device_is_reference(mixer_of(COMPILED[1], causal=True), device, 300, 2, True)
