"""Toeplitz mixers that weigh keys by what they hold: P_ij = w_j t_{i-j} / sum over k of w_k t_{i-k}."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, FrequencyToeplitz, MixerConfigError, Toeplitz, ToeplitzMixer
from remixer.mixers.convolution import toeplitz_matrix
from remixer.mixers.key_weights import MOST, KeyWeights
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=5, value_dim=3, scale=0.4, padding=True, dtype=torch.float64)
BY_CHANNEL, BY_HEAD = Toeplitz(weigh="key"), Toeplitz(weigh="key", per="head", gate="value", decay=None)
each_config = pytest.mark.parametrize("config", [BY_CHANNEL, BY_HEAD], ids=["channel", "head"])
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def mixer_of(config=BY_CHANNEL, trained=True, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    mixer = ToeplitzMixer(dataclasses.replace(SPEC, dtype=dtype, **changes), config)
    for parameter in mixer.parameters() if trained else ():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype)


def operands_of(mixer, B, T, grad=False):
    spec = mixer.spec
    shapes = {
        "query": (B, spec.heads, T, spec.head_dim),
        "key": (B, spec.kv_heads, T, spec.head_dim),
        "value": (B, spec.kv_heads, T, spec.value_dim),
    }
    drawn = {name: torch.randn(shape, dtype=torch.float64).to(spec.dtype) for name, shape in shapes.items()}
    return {name: each.requires_grad_(grad) for name, each in drawn.items() if name in mixer.operands}


def padding_of(kind, B, T):
    cut = (T // 3 + torch.arange(B)).clamp(max=T - 1)[:, None]
    kinds = {
        "left": torch.arange(T) >= cut,
        "right": torch.arange(T) < T - cut,
        "holes": (torch.rand(B, T) > 0.5) | (torch.arange(T) == T // 2),
        "whole": (torch.arange(B)[:, None] != B - 1).expand(B, T),
    }
    return kinds.get(kind)


@pytest.mark.parametrize(
    ("config", "options", "told"),
    [
        (Toeplitz, {"weigh": "query"}, "Toeplitz: weigh must be one of none, key, got 'query'"),
        (Toeplitz, {"weigh": "key", "normalise": False}, "Toeplitz: weigh='key' takes rows that are divided by their"),
        (
            FrequencyToeplitz,
            {"weigh": "key"},
            "FrequencyToeplitz: weigh='key' takes rows that are divided by their sum",
        ),
    ],
)
def test_what_can_not_be_weighed_is_refused_in_a_sentence(config, options, told):
    with pytest.raises(MixerConfigError, match=told):
        config(**options)


def test_keys_are_wired_and_cost_something():
    assert mixer_of().operands == ("key", "value", "padding")
    assert mixer_of(Toeplitz(weigh="key", gate="query")).operands == ("query", "key", "value", "padding")
    assert "key" not in mixer_of(Toeplitz()).operands
    assert mixer_of(BY_CHANNEL).flops(100) > 1.5 * mixer_of(Toeplitz()).flops(100)


@each_direction
@each_config
def test_it_starts_as_the_mixer_without_weights_and_learns(config, causal):
    plain = mixer_of(dataclasses.replace(config, weigh="none"), trained=False, causal=causal)
    weighed = mixer_of(config, trained=False, causal=causal)
    weighed.load_state_dict(plain.state_dict(), strict=False)
    given, padding = operands_of(weighed, 2, 20), padding_of("left", 2, 20)
    for mask in (None, padding):
        out = weighed(**given, padding=mask)
        assert_close(out, plain(value=given["value"], padding=mask))
    out.square().sum().backward()
    assert float(weighed.key_weights.weight.grad.abs().min()) > 0.0


@each_direction
def test_rows_are_those_of_the_paper(causal):
    """Equation 2 of Zhai et al., written down for one channel of one head."""
    mixer, T = mixer_of(causal=causal), 12
    given = operands_of(mixer, 1, T)
    mixed = mixer(**given)[0, 3, :, 2]  # head 3 reads key head 1
    weights = (given["key"][0, 1] @ mixer.key_weights.weight[1, :, 2] / MOST).tanh().mul(MOST).exp()
    table = toeplitz_matrix(mixer.coefficients(T), causal)[3, 2] * weights
    assert_close(mixed.detach(), (table @ given["value"][0, 1, :, 2] / table.sum(1)).detach())
    assert float((weights.max() / weights.min()).detach()) > 3.0


@each_direction
@each_config
def test_rows_are_distributions(config, causal):
    mixer = mixer_of(dataclasses.replace(config, gate="none"), causal=causal)
    given = operands_of(mixer, 3, 33) | {"value": torch.ones(3, 2, 33, 3, dtype=torch.float64)}
    for kind in ("none", "left", "right", "holes"):
        mask = padding_of(kind, 3, 33)
        mixed = mixer(**given, padding=mask).transpose(1, 2).detach()
        assert_close(mixed, torch.ones_like(mixed), where=mask)


@each_config
def test_no_key_can_weigh_so_much_that_sums_become_inexact(config):
    mixer = mixer_of(config, dtype=torch.float32).eval()
    for T in (300, 1000):
        given = operands_of(mixer, 1, T)
        given["key"] *= 50.0
        exact = mixer.double()(**{name: each.double() for name, each in given.items()})
        assert_close(mixer.float()(**given).detach(), exact.float().detach())


@each_config
@pytest.mark.parametrize("decoding", ["ring", "state_space"])
@pytest.mark.parametrize("options", [{}, {"decay": 0.9, "learn_decay": True}], ids=["decay", "learned_decay"])
def test_token_by_token(config, decoding, options):
    for T, kv_heads, kind, window in (
        (1, 2, "none", None),
        (17, 4, "left", None),
        (23, 1, "holes", 5),
        (16, 2, "none", 0),
    ):
        mixer = mixer_of(
            dataclasses.replace(config, decoding=decoding, **options),
            causal=True,
            kv_heads=kv_heads,
            window=(window, 0),
        ).eval()
        given, mask = operands_of(mixer, 3, T, grad=True), padding_of(kind, 3, T)
        state, rows = mixer.initial_state(3, T + 2, given["value"]), []
        shapes = {name: entry.shape for name, entry in state.items()}
        for t in range(T):
            token = {name: each[:, :, t : t + 1] for name, each in given.items()}
            out, state = mixer.step(state, **token, padding=None if mask is None else mask[:, t : t + 1])
            rows.append(out)
            assert {name: entry.shape for name, entry in state.items()} == shapes
        steps, whole = torch.cat(rows, 2), mixer(**given, padding=mask)
        assert_close(steps, whole)
        leaves = [*given.values(), *mixer.parameters()]
        found = [torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True) for out in (steps, whole)]
        assert_close(*found)
        with torch.no_grad():
            out, _ = mixer.prefill(T + 2, **given, padding=mask)
            assert_close(out, whole)


def test_what_tokens_weigh_is_not_shared_between_mixers():
    assert "exist" in mixer_of(Toeplitz(), causal=True).of_tokens
    assert "exist" not in mixer_of(BY_CHANNEL, causal=True).of_tokens
    assert "position" in mixer_of(BY_CHANNEL, causal=True).of_tokens


@each_config
def test_padded_keys_may_hold_anything(config):
    for causal in (False, True):
        mixer = mixer_of(config, causal=causal)
        given, mask = operands_of(mixer, 3, 17, grad=True), padding_of("holes", 3, 17)
        garbage = {name: each.detach().masked_fill(~mask[:, None, :, None], torch.nan) for name, each in given.items()}
        assert torch.equal(mixer(**garbage, padding=mask), mixer(**given, padding=mask))
        mixer(**garbage, padding=mask).square().sum().backward()
        assert bool(mixer.key_weights.weight.grad.isfinite().all())


@pytest.mark.parametrize("options", [{"decay": 0.3}, {"decay": 0.2, "per": "head"}], ids=["channel", "head"])
@each_direction
def test_long_sequences_block_by_block(options, causal, monkeypatch):
    for name, value in (("LONG", 64), ("REACHES", 2), ("LONG_IN_C", 64)):
        monkeypatch.setattr(f"remixer.mixers.toeplitz_operator.{name}", value)
    for name, value in (("SHORTEST_TRANSFORM", 64), ("ENTRIES_AT_ONCE", 4000)):
        monkeypatch.setattr(f"remixer.mixers.local_kernel.{name}", value)
    mixer = mixer_of(Toeplitz(weigh="key", **options), dtype=torch.float32, causal=causal).eval()
    torch.nn.init.normal_(mixer.encoder.last.weight, std=0.1)
    given = operands_of(mixer, 2, 1100)
    with torch.no_grad():
        assert mixer._local_kernel(given["value"]) is not None
        for mask in (None, padding_of("left", 2, 1100), padding_of("holes", 2, 1100)):
            mixed = mixer.float()(**given, padding=mask)
            exact = mixer.double().reference(**{name: each.double() for name, each in given.items()}, padding=mask)
            where = None if mask is None else mask[:, None].expand(-1, 4, -1)
            assert_close(mixed, exact.float(), where=where)


def test_gradients_of_gradients():
    mixer = mixer_of(causal=True)
    given = operands_of(mixer, 1, 4, grad=True)
    assert torch.autograd.gradgradcheck(lambda key, value: mixer(key=key, value=value), (given["key"], given["value"]))


def test_it_trains_by_the_products_own_gradients():
    mixer = mixer_of(dtype=torch.float32)
    for parameter in mixer.encoder.parameters():
        parameter.requires_grad_(False)  # the keys' map alone learns
    out = mixer(**operands_of(mixer, 1, 300))
    names, stack = set(), [out.grad_fn]
    while stack:
        if (node := stack.pop()) is not None and node not in names:
            names.add(node)
            stack += [inner for inner, _ in node.next_functions]
    assert sum("Product" in node.name() for node in names) == 2  # values, and what rows are divided by


def test_weights_are_bounded_and_in_float32_at_least():
    maps = KeyWeights(2, 4, 1).bfloat16()
    torch.nn.init.ones_(maps.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = maps(torch.full((1, 2, 3, 4), 1e4, dtype=torch.bfloat16))
    assert weights.dtype == torch.float32
    assert_close(weights.detach(), torch.full((1, 2, 3, 1), MOST).exp())
