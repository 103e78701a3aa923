"""Every registered mixer, third parties' included, keeps the contract of Mixer: tested by being registered."""

import copy
import dataclasses
import io
import math

import pytest
import torch

from remixer.mixers import AttentionSpec, FrequencyToeplitz, LongShort, Toeplitz, available, get
from remixer.rewrite.tracing import quick_tracing
from remixer.testing import assert_close

VARIANTS = {
    "toeplitz": [
        Toeplitz(normalise=False),
        Toeplitz(gate="query", per="head", decay=None),
        Toeplitz(gate="value", rpe_layers=0, rpe_width=8, decay=0.9),
        Toeplitz(per="head", normalise=False, decay=1.0),
        Toeplitz(decay=0.9, learn_decay=True, normalise=False),
        Toeplitz(decay=0.95, learn_decay=True, per="head", gate="value"),
        Toeplitz(weigh="key", gate="value"),
        Toeplitz(weigh="key", per="head", decay=None),
    ],
    "frequency_toeplitz": [
        FrequencyToeplitz(gate="value", per="head"),
        FrequencyToeplitz(rpe_layers=0, rpe_width=8, gate="query"),
    ],
    "long_short": [
        LongShort(window=8, segment=4, memory=3, maps=True),
        LongShort(window=7, rank=3, segment=3, memory=None, sinks=2),
        LongShort(window=6, rank=2, segment=9, sinks=0, counted=False, dual_norm="paper", project_from="source"),
        LongShort(window=16, rank=2, segment=2, memory=1, dual_norm="per_head"),
        LongShort(window=1, rank=0),
        LongShort(window=8, segment=2, retrieve=2, retrieve_block=4, memory=3),
        LongShort(window=6, segment=3, retrieve=3, retrieve_block=1, memory="dyadic", per_size=2, rank=2, sinks=2),
        LongShort(window=4, segment=4, retrieve=1, retrieve_block=2, rank=0),
        LongShort(window=5, segment=2, memory="dyadic", per_size=2, rank=2, maps=True),
        LongShort(window=4, segment=1, memory="dyadic", per_size=1, sinks=1, counted=False, dual_norm="per_head"),
    ],
}
CASES = [(name, config) for name in available() for config in [get(name).Config(), *VARIANTS.get(name, [])]]
# length, batch, key/value heads of 4, padding
SHAPES = [
    (1, 1, 2, "none"),
    (1, 3, 4, "whole"),
    (2, 3, 1, "left"),
    (17, 3, 2, "none"),
    (17, 3, 4, "right"),
    (17, 3, 1, "whole"),
    (63, 1, 2, "holes"),
    (130, 1, 2, "left"),
]
each_case = pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else repr(x)[:60])
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def spec_for(name, config, **changes):
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4, source_dim=5, padding=True)
    spec = dataclasses.replace(spec, **changes)
    if get(name).supports(spec, config) is not None:
        spec = dataclasses.replace(spec, value_dim=spec.head_dim)
    assert get(name).supports(spec, config) is None
    return spec


def mixer_for(name, config, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    mixer = get(name).from_attention(spec_for(name, config, dtype=dtype, **changes), config)
    for parameter in mixer.parameters():  # nothing at its harmless start
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype)


def operands_for(mixer, T, B=1, padding="none", grad=True):
    spec = mixer.spec
    torch.manual_seed(T * 7 + B)
    shapes = {
        "query": (B, spec.heads, T, spec.head_dim),
        "key": (B, spec.kv_heads, T, spec.head_dim),
        "value": (B, spec.kv_heads, T, spec.value_dim),
        "source": (B, T, spec.source_dim),
    }
    tensors = {
        name: torch.randn(shape, dtype=torch.float64).to(spec.dtype).requires_grad_(grad)
        for name, shape in shapes.items()
        if name in mixer.operands
    }
    return tensors, padding_for(padding, B, T)


def padding_for(kind, B, T):
    position, row = torch.arange(T)[None], torch.arange(B)[:, None]
    if kind == "none":
        return None
    if kind == "holes":
        return (torch.rand(B, T) > 0.4) | (position == T // 2)
    if kind == "whole":
        return (row != B - 1).expand(B, T)
    cut = (T // 3 + row).clamp(max=T - 1)
    return position >= cut if kind == "left" else position < T - cut


def value_and_gradients(function, mixer, tensors, padding):
    out = function(**tensors, padding=padding)
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape) / out.shape[2]
    leaves = [*tensors.values(), *mixer.parameters()]
    gradients = torch.autograd.grad(
        (out * weight.to(out.dtype)).sum(), leaves, allow_unused=True, materialize_grads=True
    )
    return out.detach(), gradients


@each_direction
@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
def test_forward_is_the_reference_in_values_and_gradients(name, config, causal, dtype):
    shapes = SHAPES if dtype == torch.float64 else SHAPES[::3] if dtype == torch.float32 else SHAPES[1::3]
    for T, B, kv_heads, padding in shapes:
        mixer = mixer_for(name, config, dtype, causal=causal, kv_heads=kv_heads)
        tensors, mask = operands_for(mixer, T, B, padding)
        out, gradients = value_and_gradients(mixer, mixer, tensors, mask)
        expected, expected_gradients = value_and_gradients(mixer.reference, mixer, tensors, mask)
        assert out.dtype == dtype
        assert_close(out, expected)
        assert_close(gradients, expected_gradients)
        mixer.eval()
        with torch.no_grad():
            for _ in range(2):  # the second time from what was kept
                assert_close(mixer(**tensors, padding=mask), expected)


def test_the_comparison_can_fail():
    mixer = mixer_for("toeplitz", Toeplitz())
    tensors, mask = operands_for(mixer, 17)
    out, gradients = value_and_gradients(mixer, mixer, tensors, mask)
    wrong = out.clone()
    wrong[0, 0, 3, 0] += 1e-6
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(wrong, out)
    with pytest.raises(AssertionError, match="in output 1"):
        assert_close([gradients[0], gradients[1] * 1.001], gradients[:2])


@each_direction
@each_case
@pytest.mark.parametrize("window", [(3, 2), (40, 40)], ids=str)
def test_a_pretrained_window_shows_nothing_beyond_it(name, config, causal, window):
    left, right = window
    mixer = mixer_for(name, config, causal=causal, window=(left, 0 if causal else right))
    tensors, mask = operands_for(mixer, 30, 2, "left")
    out, gradients = value_and_gradients(mixer, mixer, tensors, mask)
    expected, expected_gradients = value_and_gradients(mixer.reference, mixer, tensors, mask)
    assert_close(out, expected)
    assert_close(gradients, expected_gradients)
    mixer.eval()
    with torch.no_grad():
        assert_close(mixer(**tensors, padding=mask), expected)
        changed = {key: tensor.clone() for key, tensor in tensors.items()}
        for key in set(changed) - {"query"}:
            changed[key][..., 20:, :] = 9.0
        assert_close(mixer(**changed, padding=mask)[:, :, : max(0, 20 - right)], expected[:, :, : max(0, 20 - right)])


@each_case
@pytest.mark.parametrize("trained", [True, False], ids=["grad", "no_grad"])
def test_causal_mixers_see_nothing_to_come(name, config, trained):
    mixer = mixer_for(name, config, causal=True).eval()
    tensors, mask = operands_for(mixer, 41, 2, "left")
    with torch.set_grad_enabled(trained):
        before = mixer(**tensors, padding=mask).detach()
        for t in (0, 7, 8, 25, 39):
            later = {key: tensor.detach().clone() for key, tensor in tensors.items()}
            for tensor in later.values():
                tensor[..., t + 1 :, :] += 3.0
            after = mixer(**later, padding=mask).detach()
            assert_close(after[:, :, : t + 1], before[:, :, : t + 1])


@each_direction
@each_case
def test_padded_keys_have_no_influence(name, config, causal):
    mixer = mixer_for(name, config, causal=causal).eval()
    for padding in ("left", "right", "holes", "whole"):
        tensors, mask = operands_for(mixer, 37, 3, padding)
        for trained in (True, False):
            with torch.set_grad_enabled(trained):
                before = mixer(**tensors, padding=mask).detach()
                changed = {}
                for key, tensor in tensors.items():
                    hidden = ~mask[..., None] if key == "source" else ~mask[:, None, :, None]
                    changed[key] = tensor.detach().masked_fill(hidden, 50.0)
                after = mixer(**changed, padding=mask).detach()
            assert_close(after.transpose(1, 2), before.transpose(1, 2), where=mask)


@each_direction
@each_case
def test_padding_that_hides_nothing_changes_nothing(name, config, causal):
    mixer = mixer_for(name, config, causal=causal)
    tensors, _ = operands_for(mixer, 37, 2)
    whole = torch.ones(2, 37, dtype=torch.bool)
    assert_close(mixer(**tensors, padding=whole).detach(), mixer(**tensors).detach())


@each_direction
@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_that_see_nothing_give_zero_and_no_nan(name, config, causal, dtype):
    mixer = mixer_for(name, config, dtype, causal=causal)
    tensors, mask = operands_for(mixer, 21, 2, "whole")
    out, gradients = value_and_gradients(mixer, mixer, tensors, mask)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    with torch.no_grad():
        assert torch.equal(mixer(**tensors, padding=mask)[1], out[1])


@each_case
def test_copies_state_and_modes(name, config):
    mixer = mixer_for(name, config).eval()
    tensors, mask = operands_for(mixer, 23, 2, "left", grad=False)
    with torch.no_grad():
        expected = mixer(**tensors, padding=mask)
        twin = copy.deepcopy(mixer)
        assert_close(twin(**tensors, padding=mask), expected)
        file = io.BytesIO()
        torch.save(mixer, file)
        file.seek(0)
        assert_close(torch.load(file, weights_only=False)(**tensors, padding=mask), expected)
        other = get(name)(mixer.spec, config).double().eval()
        other(**tensors, padding=mask)  # what it keeps must not outlive the parameters that are loaded next
        other.load_state_dict(mixer.state_dict())
        assert_close(other(**tensors, padding=mask), expected)
        assert_close(mixer.train()(**tensors, padding=mask), expected)
        assert (
            mixer.to(torch.float32)
            .eval()(**{key: tensor.float() for key, tensor in tensors.items()}, padding=mask)
            .dtype
            == torch.float32
        )


def largest_exponent(program, T):
    """How fast the largest tensor of an exported program grows: log of the growth over log of 4 times the length."""
    symbol = program.graph_module.graph.find_nodes(op="placeholder")[-1].meta["val"].shape[1].node.expr

    def numel(value, length):
        count = 1
        for size in value.shape:
            expr = size.node.expr if isinstance(size, torch.SymInt) else size
            free = getattr(expr, "free_symbols", set())
            count *= int(expr.subs({each: length if each == symbol else 2 for each in free})) if free else int(size)
        return count

    values = [node.meta.get("val") for node in program.graph.nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    large = [(numel(value, 256 * T), numel(value, 1024 * T)) for value in tensors]
    return max(math.log(max(b, 1) / max(a, 1), 4) for a, b in large)


QUICKLY_EXPORTED = (12, 8, 5, 128)  # windows of the Long-Shorts whose export is always tried; others take long
EXPORTED = [
    pytest.param(
        name, config, marks=pytest.mark.slow if name == "long_short" and config.window not in QUICKLY_EXPORTED else []
    )
    for name, config in CASES
]


@each_direction
@pytest.mark.parametrize(("name", "config"), EXPORTED, ids=lambda x: x if isinstance(x, str) else repr(x)[:60])
def test_export_at_any_length_with_the_order_it_declares(name, config, causal, monkeypatch):
    for module in ("memory", "retrieval"):  # enough for these lengths; every level costs the export a second
        monkeypatch.setattr(f"remixer.mixers.long_short.{module}.MOST_LEVELS", 7)
    if name == "long_short" and config.window > 40:
        config = dataclasses.replace(config, window=12)
    mixer = mixer_for(name, config, causal=causal).eval()
    tensors, mask = operands_for(mixer, 50 if causal else 48, 2, "left", grad=False)
    inputs = {**tensors, "padding": mask}
    auto = torch.export.Dim.AUTO
    shapes = {key: {0: auto, x.dim() - (1 if key == "padding" else 2): auto} for key, x in inputs.items()}
    with torch.no_grad(), quick_tracing():
        program = torch.export.export(mixer, (), inputs, dynamic_shapes=shapes)
    for T, B in ((48, 2), (61, 3), (96, 2)):
        others, other_mask = operands_for(mixer, T, B, "left", grad=False)
        assert_close(
            program.module()(**others, padding=other_mask).detach(),
            mixer.reference(**others, padding=other_mask).detach(),
        )
    exponent = largest_exponent(program, 48)
    assert exponent <= (2.05 if mixer.order == "n^2" else 1.05), f"a tensor grows as n^{exponent:.2f}"


@each_direction
@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_autocast_changes_nothing_that_its_dtype_would_not_round(name, config, causal, dtype):
    mixer = mixer_for(name, config, dtype, causal=causal).eval()
    tensors, mask = operands_for(mixer, 35, 2, "left", grad=False)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = mixer(**tensors, padding=mask)
        if "toeplitz" in name:  # the others may give what fused attention gives under autocast
            assert out.dtype == dtype
        assert_close(out.bfloat16(), mixer.reference(**tensors, padding=mask))
