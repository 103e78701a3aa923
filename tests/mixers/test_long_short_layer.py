import dataclasses

import pytest
import torch

from remixer.mixers import LongShort, LongShortAttention, MixerConfigError
from remixer.mixers.long_short_layer import BIDIRECTIONAL, CAUSAL, global_tokens_first
from remixer.testing import assert_close

WIDTH, HEADS = 24, 3
SMALL = dataclasses.replace(BIDIRECTIONAL, window=4, rank=3)
CONFIGS = {
    "published": SMALL,
    "odd window": dataclasses.replace(SMALL, window=5, rank=1),
    "no summaries": dataclasses.replace(SMALL, rank=0),
    "keys read, heads normed": dataclasses.replace(SMALL, window=6, project_from="key", dual_norm="per_head"),
    "no norm, window of one": dataclasses.replace(SMALL, window=1, dual_norm="none"),
}
# length, batch, padding
SHAPES = [
    (1, 1, "none"),
    (1, 2, "left"),
    (2, 1, "none"),
    (3, 2, "left"),
    (17, 3, "left"),
    (23, 1, "none"),
    (18, 3, "right"),
    (29, 2, "holes"),
    (9, 3, "whole"),
]
each_shape = pytest.mark.parametrize(("T", "B", "padding"), SHAPES)
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def case(T, B, padding, dtype=torch.float64):
    torch.manual_seed(T * 7 + B)
    hidden = torch.randn(B, T, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    position, row = torch.arange(T)[None], torch.arange(B)[:, None]
    masks = {
        "none": None,
        "left": position >= (2 * row).clamp(max=T - 1),
        "right": position < T - row,
        "holes": (torch.rand(B, T) > 0.4) | (position == T // 2),
        "whole": (row != B - 1).expand(B, T),
    }
    return hidden, masks[padding]


def layer_of(config, dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = LongShortAttention(WIDTH, HEADS, config, **options)
    for parameter in layer.mixer.parameters():  # nothing at its harmless start
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.to(dtype)


def gradients(out, layer, hidden):
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype) / out.shape[1]
    leaves = [hidden, *layer.parameters()]
    return torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True)


def assert_is_its_reference(layer, hidden, padding):
    out, expected = layer(hidden, padding), layer.reference(hidden, padding)
    assert out.dtype == hidden.dtype
    assert_close(out.detach(), expected.detach())
    assert_close(gradients(out, layer, hidden), gradients(expected, layer, hidden))
    layer.eval()
    with torch.no_grad():
        for _ in range(2):  # the second time from what was kept
            assert_close(layer(hidden, padding), expected.detach())


@each_config
@each_dtype
@pytest.mark.parametrize("global_tokens", [0, 1, 3])
def test_it_is_its_reference_in_values_and_gradients(config, dtype, global_tokens):
    for T, B, padding in SHAPES if dtype == torch.float64 else SHAPES[::2]:
        layer = layer_of(config, dtype, global_tokens=global_tokens)
        assert_is_its_reference(layer, *case(T, B, padding, dtype))


@each_shape
def test_the_causal_layer_is_its_reference(T, B, padding):
    config = dataclasses.replace(CAUSAL, window=4, segment=2)
    assert_is_its_reference(layer_of(config, causal=True), *case(T, B, padding))


def norm(x, layer):
    return torch.nn.functional.layer_norm(x, (WIDTH,), layer.weight, layer.bias)


def by_hand(layer, hidden, kept, window, globals_, W):
    """Equation 5 and the second pass for one sample, token by token, without any module of ours."""
    D, half = WIDTH // HEADS, window // 2
    q, k, v = (each(hidden) for each in (layer.query, layer.key, layer.value))
    others = [s for s in kept if s not in globals_]
    P = [torch.softmax(hidden[others] @ W[h], 0) for h in range(HEADS)]
    cut = [slice(h * D, (h + 1) * D) for h in range(HEADS)]
    far = [torch.cat([P[h].T @ x[others][:, cut[h]] for h in range(HEADS)], 1) for x in (k, v)]
    far_k, far_v = (norm(x, layer.mixer.summary_norm) for x in far)
    k, v = norm(k, layer.mixer.window_norm), norm(v, layer.mixer.window_norm)
    mixed = torch.zeros_like(hidden)
    place = {s: s - len(globals_) for s in others}  # the global tokens stand first here
    for t in others:
        first = place[t] // window * window
        near = [s for s in others if first - half <= place[s] < first + window + half]
        keys, values = (torch.cat([a[globals_], b, a[near]]) for a, b in ((k, far_k), (v, far_v)))
        for c in cut:
            weights = torch.softmax(keys[:, c] @ q[t, c] / D**0.5, 0)
            mixed[t, c] = weights @ values[:, c]
    second = mixed.clone()
    for t in globals_:
        for c in cut:
            keys, values = (torch.cat([x[globals_][:, c], mixed[others][:, c]]) for x in (k, v))
            second[t, c] = torch.softmax(keys @ q[t, c] / D**0.5, 0) @ values
    return layer.out(second)


@pytest.mark.parametrize("global_tokens", [0, 2])
def test_it_is_the_published_formula(global_tokens):
    layer = layer_of(SMALL, global_tokens=global_tokens).eval()
    hidden, padding = case(19, 2, "holes")
    padding[:, :global_tokens] = True
    with torch.no_grad():
        out = layer(hidden, padding)
        for b in range(2):
            kept = padding[b].nonzero()[:, 0].tolist()
            expected = by_hand(layer, hidden[b], kept, 4, list(range(global_tokens)), layer.mixer.pooling)
            assert_close(out[b, kept], expected[kept])


def test_the_comparison_can_fail():
    layer = layer_of(SMALL, global_tokens=1)
    hidden, _ = case(17, 1, "none")
    out, expected = layer(hidden).detach(), layer.reference(hidden).detach()
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(out, layer_of(dataclasses.replace(SMALL, window=5), global_tokens=1)(hidden).detach())
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(out + 1e-6, expected)


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, rank=0)], ids=["summaries", "window only"])
def test_a_global_token_is_seen_by_all_and_sees_all(config):
    layer = layer_of(config, global_tokens=1)
    hidden = torch.randn(1, 41, WIDTH, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0].sum(-1), hidden).abs().amax(-1)[:, 0]
    assert float(jacobian[:, 0].min()) > 1e-9
    assert float(jacobian[0].min()) > 1e-9
    if config.rank == 0:
        assert float(jacobian[1, 20:].max()) == 0.0


@pytest.mark.parametrize("global_tokens", [0, 2])
def test_left_padding_by_whole_windows_changes_nothing(global_tokens):
    layer = layer_of(SMALL, global_tokens=global_tokens).eval()
    hidden, _ = case(17, 1, "none")
    padded = torch.cat([torch.full((1, 8, WIDTH), 50.0, dtype=torch.float64), hidden], 1)
    alone, out = layer(hidden), layer(padded, torch.arange(25)[None] >= 8)
    assert_close(out[:, 8:].detach(), alone.detach())


def test_global_tokens_are_the_first_that_exist():
    exist = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    assert global_tokens_first(exist, 2).tolist() == [[1, 3, 0, 2, 4], [0, 1, 2, 3, 4], [4, 0, 1, 2, 3]]


def test_defaults_are_the_published_ones():
    bidirectional, causal = LongShortAttention(64, 2).mixer, LongShortAttention(64, 2, causal=True).mixer
    assert (bidirectional.config, bidirectional.rank, bidirectional.order) == (BIDIRECTIONAL, 32, "n")
    assert (causal.config, causal.rank, causal.order) == (CAUSAL, 1, "n^2")
    assert not any(BIDIRECTIONAL.counted or each.sinks for each in (BIDIRECTIONAL, CAUSAL))


def test_dropout_acts_in_training_only():
    layer = layer_of(SMALL, dropout=0.5, global_tokens=1)
    hidden, padding = case(17, 2, "left")
    assert float((layer(hidden, padding) - layer(hidden, padding)).detach().abs().max()) > 1e-3
    assert_close(layer.eval()(hidden, padding).detach(), layer.reference(hidden, padding).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "5 heads can't share a width of 24"),
        ({"heads": 0}, "0 heads can't share a width of 24"),
        ({"global_tokens": -1}, "global_tokens can't be negative, got -1"),
        ({"global_tokens": 1, "causal": True}, "global tokens see the whole sequence, which causal=True forbids"),
        ({"global_tokens": 1, "config": LongShort(sinks=4)}, "global tokens don't go with sinks=4"),
        ({"global_tokens": 1, "config": LongShort(sinks=0)}, "global tokens don't go with counted=True"),
        ({"global_tokens": 1, "config": LongShort(sinks=0, retrieve=2)}, "global tokens don't go with retrieve=2"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(options, message):
    with pytest.raises(MixerConfigError, match=f"LongShortAttention: {message}"):
        LongShortAttention(**{"width": WIDTH, "heads": HEADS, **options})
