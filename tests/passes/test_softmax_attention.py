"""Attention written out: every spelling that is read, near misses with their reasons, and the numbers."""

import math

import pytest
import torch
from torch import nn

from remixer import SoftmaxConfig
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.passes.softmax_attention import SoftmaxAttention
from remixer.rewrite.capture import capture
from remixer.testing import assert_close, assert_rewrites

SCALE = 8**-0.5
ABOUT = pytest.approx(SCALE)


def repeat_kv(x, groups):
    B, G, S, D = x.shape
    return x[:, :, None].expand(B, G, groups, S, D).reshape(B, G * groups, S, D)


def flat(x):
    return x.reshape(-1, *x.shape[2:])


def by_bmm(q, k, v, mask, model):
    weights = torch.softmax(torch.bmm(flat(q) * SCALE, flat(k).transpose(1, 2)), -1)
    return torch.bmm(weights, flat(v)).view(q.shape)


def by_bmm_masked(q, k, v, mask, model):
    scores = torch.bmm(flat(q) * SCALE, flat(k).transpose(1, 2)).view(*q.shape[:3], -1)
    scores = flat(scores.masked_fill(~mask, -torch.inf))
    return torch.bmm(torch.softmax(scores, -1), flat(v)).view(q.shape)


def by_baddbmm(q, k, v, mask, model):
    empty = torch.empty(q.shape[0] * q.shape[1], q.shape[2], k.shape[2])
    scores = torch.baddbmm(empty, flat(q), flat(k).transpose(1, 2), beta=0, alpha=SCALE)
    weights = torch.softmax(scores.view(*q.shape[:3], -1), -1)
    return torch.bmm(flat(weights), flat(v)).view(q.shape)


def by_baddbmm_onto(q, k, v, mask, model):
    position = torch.arange(k.shape[2]).cos().expand(q.shape[0] * q.shape[1], 1, -1)
    scores = torch.baddbmm(position, flat(q), flat(k).transpose(1, 2), beta=0.5, alpha=SCALE)
    return torch.bmm(torch.softmax(scores, -1), flat(v)).view(q.shape)


def by_five(q, k, v, mask, model):
    scores = q.unflatten(1, (2, 1)) @ k[:, :, None].mT
    return (torch.softmax(scores, -1) @ v[:, :, None]).flatten(1, 2)


def with_sink(q, k, v, mask, model, kept=slice(None, -1)):
    scores = q @ k.mT * SCALE
    sink = model.query.bias[:2].reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    joined = torch.cat([scores, sink], -1)
    joined = joined - joined.max(-1, keepdim=True).values
    return torch.softmax(joined, -1)[..., kept] @ v


def softcapped(q, k, v, mask, model):
    return torch.softmax(20.0 * torch.tanh(q @ k.mT * SCALE / 20.0), -1) @ v


def cast(q, k, v, mask, model):
    return torch.softmax(q @ k.mT * SCALE, -1, dtype=torch.float32).to(q.dtype) @ v


SPELLINGS = {
    "scale behind": (lambda q, k, v, m, s: torch.softmax(q @ k.mT * SCALE, -1) @ v, {"scale": ABOUT}),
    "scale in front": (lambda q, k, v, m, s: torch.softmax(SCALE * (q @ k.mT), -1) @ v, {"scale": ABOUT}),
    "division": (
        lambda q, k, v, m, s: ((q @ k.transpose(-2, -1)) / math.sqrt(8)).softmax(-1) @ v,
        {"scale": ABOUT},
    ),
    "scale on the queries": (
        lambda q, k, v, m, s: torch.softmax((q * SCALE) @ k.transpose(2, 3), 3) @ v,
        {"scale": 1.0},
    ),
    "no scale": (lambda q, k, v, m, s: torch.softmax(q @ k.mT, dim=-1) @ v, {"scale": 1.0}),
    "in place": (lambda q, k, v, m, s: torch.softmax((q @ k.mT).mul_(SCALE), -1) @ v, {"scale": ABOUT}),
    "twice scaled": (
        lambda q, k, v, m, s: torch.softmax(q @ k.mT * 2.0 / 4.0, -1) @ v,
        {"scale": 0.5},
    ),
    "a shift": (lambda q, k, v, m, s: torch.softmax(q @ k.mT * SCALE + 3.0, -1) @ v, {"scale": ABOUT}),
    "cast": (cast, {"scale": ABOUT}),
    "softcap": (softcapped, {"softcap": 20.0, "scale": ABOUT}),
    "flat": (by_bmm, {"heads": 2}),
    "scaled by a tensor": (
        lambda q, k, v, m, s: torch.softmax(q @ k.mT / torch.full([], 8**0.5), -1) @ v,
        {"scale": ABOUT},
    ),
    "baddbmm": (by_baddbmm, {"heads": 2, "scale": ABOUT}),
    "five dimensions": (by_five, {"heads": 2, "scale": 1.0}),
    "minus its maximum": (
        lambda q, k, v, m, s: torch.softmax((a := q @ k.mT) - a.amax(-1, keepdim=True), -1) @ v,
        {"scale": 1.0},
    ),
    "a sink": (with_sink, {"scale": ABOUT, "sink": True}),
    "keys exchanged before": (
        lambda q, k, v, m, s: torch.softmax(q @ k.permute(0, 1, 3, 2) * SCALE, -1) @ v,
        {"scale": ABOUT},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name, one_attention, recognised):
    mix, expected = SPELLINGS[name]
    model = one_attention(mix=mix)
    result, (site,) = recognised(model)
    assert site.record.rule == "SoftmaxAttention"
    assert result.misses == ()
    spec = {"heads": 2, "kv_heads": 2, "causal": False, "bias": "none", "padding": False, **expected}
    assert {field: getattr(site.spec, field) for field in spec} == spec
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    for shape in ((2, 9, 16), (1, 1, 16), (3, 37, 16)):
        x = torch.randn(shape)
        assert_close(small.graph_module(x), model(x))


def test_baddbmm_onto_a_bias(one_attention, recognised):
    model = one_attention(mix=by_baddbmm_onto)
    result, (site,) = recognised(model)
    assert (site.spec.heads, site.spec.scale, site.spec.bias) == (2, ABOUT, "dense")
    x = torch.randn(3, 5, 16)
    assert_close(result.graph_module(x), model(x))


def test_a_boolean_that_is_added_hides_nothing(one_attention, recognised):
    model = one_attention(
        mask=lambda T, keep, s: torch.ones(T, T, dtype=torch.bool).tril(),
        mix=lambda q, k, v, m, s: torch.softmax(q @ k.mT + m, -1) @ v,
    )
    inputs = (torch.randn(2, 9, 16),)
    result, (site,) = recognised(model, inputs)
    assert not site.spec.causal
    assert_close(result.graph_module(*inputs), model(*inputs))


SINKS = {
    "two columns": (
        lambda q, k, v, m, s: torch.softmax(torch.cat([q @ k.mT, q], -1), -1)[..., :-8] @ v,
        "something else than one column is put beside the scores",
    ),
    "a sink of every query": (
        lambda q, k, v, m, s: torch.softmax(torch.cat([q @ k.mT, q[..., :1]], -1), -1)[..., :-1] @ v,
        "is not made of one number per head",
    ),
    "scaled afterwards": (
        lambda q, k, v, m, s: (
            (torch.softmax(2 * torch.cat([q @ k.mT, s.query.bias[:2, None, None].expand(*q.shape[:3], 1)], -1), -1))[
                ..., :-1
            ]
            @ v
        ),
        "the scores are changed after a sink was put beside them",
    ),
    "the wrong column dropped": (
        lambda q, k, v, m, s: with_sink(q, k, v, m, s, slice(1, None)),
        "other weights than the sink's are dropped",
    ),
    "some weights dropped": (
        lambda q, k, v, m, s: torch.softmax(q @ k.mT, -1)[..., :4] @ v[:, :, :4],
        "only some of the weights are used",
    ),
}


@pytest.mark.parametrize("name", SINKS)
def test_near_misses_of_a_sink(name, one_attention):
    mix, reason = SINKS[name]
    program = Canonicalise()(capture(one_attention(mix=mix), (torch.randn(2, 9, 16),))).program
    assert_rewrites(program, None, SoftmaxAttention(), times=0, misses=reason)


GROUPED = {
    "five dimensions": lambda q, k, v, m, s: (
        torch.softmax(q.unflatten(1, (2, 2)) @ k[:, :, None].mT * SCALE, -1) @ v[:, :, None]
    ).flatten(1, 2),
    "expand": lambda q, k, v, m, s: torch.softmax(q @ repeat_kv(k, 2).mT * SCALE, -1) @ repeat_kv(v, 2),
    "interleave": lambda q, k, v, m, s: (
        torch.softmax(q @ k.repeat_interleave(2, 1).mT * SCALE, -1) @ v.repeat_interleave(2, dim=1)
    ),
}


@pytest.mark.parametrize("name", GROUPED)
def test_repeated_heads_are_seen_as_grouped_heads(name, one_attention, recognised):
    model = one_attention(mix=GROUPED[name], heads=4, kv_heads=2, width=32)
    result, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 2)
    x = torch.randn(3, 5, 32)
    assert_close(result.graph_module(x), model(x))


def test_one_key_and_value_for_all_heads(one_attention, recognised):
    model = one_attention(mix=SPELLINGS["scale behind"][0], heads=4, kv_heads=1, width=32)
    _, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 1)


def test_heads_that_are_tiled_are_not_grouped(one_attention, recognised):
    """k.repeat(1, 2, 1, 1) gives heads 0 1 0 1, not 0 0 1 1: they have to be taken as separate heads."""
    model = one_attention(
        mix=lambda q, k, v, m, s: torch.softmax(q @ k.repeat(1, 2, 1, 1).mT, -1) @ v.repeat(1, 2, 1, 1),
        heads=4, kv_heads=2, width=32,
    )  # fmt: skip
    result, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 4)
    x = torch.randn(3, 5, 32)
    assert_close(result.graph_module(x), model(x))


MASKED = {
    "masked_fill": lambda q, k, v, m, s: torch.softmax((q @ k.mT).masked_fill(~m, -torch.inf), -1) @ v,
    "masked_fill_": lambda q, k, v, m, s: torch.softmax((q @ k.mT).masked_fill_(~m, -1e9), -1) @ v,
    "where": lambda q, k, v, m, s: torch.softmax(torch.where(m, q @ k.mT, -1e9), -1) @ v,
    "where not": lambda q, k, v, m, s: torch.softmax(torch.where(~m, -1e9, q @ k.mT), -1) @ v,
    "where a tensor": lambda q, k, v, m, s: (
        torch.softmax(torch.where(m, q @ k.mT, torch.full((), torch.finfo(q.dtype).min)), -1) @ v
    ),
    "added": lambda q, k, v, m, s: torch.softmax(q @ k.mT + torch.where(m, 0.0, -torch.inf), -1) @ v,
    "added before the scale": lambda q, k, v, m, s: (
        torch.softmax((q @ k.mT + torch.where(m, 0.0, -1e9)) * SCALE, -1) @ v
    ),
    "subtracted": lambda q, k, v, m, s: torch.softmax(q @ k.mT - torch.where(m, 0.0, 1e9), -1) @ v,
    "twice": lambda q, k, v, m, s: torch.softmax((q @ k.mT).masked_fill(~m, -1e9).masked_fill(~m, -1e9), -1) @ v,
    "no less than the lowest": lambda q, k, v, m, s: (
        torch.softmax(torch.max(q @ k.mT + torch.where(m, 0.0, -torch.inf), torch.tensor(torch.finfo(q.dtype).min)), -1)
        @ v
    ),
    "one fill over another": lambda q, k, v, m, s: (
        torch.softmax((q @ k.mT).masked_fill(~m, -1e9).masked_fill(~m, torch.finfo(q.dtype).min), -1) @ v
    ),
    "filled and added": lambda q, k, v, m, s: (
        torch.softmax((q @ k.mT + torch.where(m, 0.0, -1e9)).masked_fill(~m, -1e9), -1) @ v
    ),
    "flat": by_bmm_masked,
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_in_every_spelling(name, one_attention, recognised, padded):
    def mask(T, keep, model):
        return torch.ones(T, T, dtype=torch.bool).tril() & keep[:, None, None, :]

    model, inputs = one_attention(mask, MASKED[name]), padded()
    result, (site,) = recognised(model)
    assert site.record.note == ""
    assert (site.spec.causal, site.spec.padding, site.spec.bias) == (True, True, "none")
    assert_close(result.graph_module(**inputs), model(**inputs))


def test_dropout_of_the_weights(one_attention, recognised):
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.25)
            self.inner = one_attention(mix=lambda q, k, v, m, s: self.drop(torch.softmax(q @ k.mT, -1)) @ v)

        def forward(self, x):
            return self.inner(x)

    result, (site,) = recognised(Dropped())
    assert site.spec.dropout == 0.25
    x = torch.randn(2, 9, 16)
    assert torch.equal(result.graph_module(x), result.graph_module(x))
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program).graph_module.train()
    assert not torch.equal(small(x), small(x))


def scored(score, dim=-1):
    return lambda q, k, v, m, s: torch.softmax(score(q, k), dim) @ v


class AlsoWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(16, 16)

    def forward(self, x):
        weights = torch.softmax(self.query(x) @ x.mT, -1)
        return weights @ x, weights


NEAR_MISSES = {
    "softmax over queries": (scored(lambda q, k: q @ k.mT, -2), "runs over dim -2, expected the last"),
    "a temperature tensor": (
        scored(lambda q, k: (q @ k.mT) * q.mean()),
        "the scores are multiplied by a tensor",
    ),
    "relu on the scores": (scored(lambda q, k: torch.relu(q @ k.mT)), "expected aten.bmm or aten.matmul"),
    "tanh without a factor": (scored(lambda q, k: torch.tanh(q @ k.mT)), "no softcap"),
    "a sum behind tanh": (scored(lambda q, k: torch.tanh(q @ k.mT) + 1), "expected the softcap's factor"),
    "a shift under tanh": (scored(lambda q, k: 5 * torch.tanh(q @ k.mT + 1)), "a softcap after the mask"),
    "scaled after the softcap": (
        scored(lambda q, k: 5 * torch.tanh(q @ k.mT) * 2),
        "the scores are scaled after their softcap",
    ),
    "scaled after a fill": (
        scored(lambda q, k: (q @ k.mT).masked_fill(q[..., :1] > 9, -1e9) * 2),
        "scaled after entries were filled in",
    ),
    "scores scaled by an add": (
        scored(lambda q, k: torch.add(torch.zeros(()), q @ k.mT, alpha=2.0)),
        "scaled by alpha",
    ),
    "floor division": (
        scored(lambda q, k: torch.div(q @ k.mT, 2.0, rounding_mode="floor")),
        "expected aten.bmm or aten.matmul",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name, one_attention):
    mix, reason = NEAR_MISSES[name]
    program = Canonicalise()(capture(one_attention(mix=mix).eval(), (torch.randn(2, 9, 16),))).program
    assert_rewrites(program, None, SoftmaxAttention(), times=0, misses=reason)


def test_weights_that_are_an_output_too_are_kept():
    program = Canonicalise()(capture(AlsoWeights(), (torch.randn(2, 9, 16),))).program
    assert_rewrites(program, None, SoftmaxAttention(), times=0, misses="is also read by output")


def test_features_that_attend_to_each_other_have_no_fixed_head_size():
    class AcrossFeatures(nn.Module):
        def forward(self, q, k, v):  # (B, H, T, D), attention between the D features
            return torch.softmax(q.mT @ k, -1) @ v.mT

    tensors = tuple(torch.randn(2, 3, 7, 8) for _ in range(3))
    program = Canonicalise()(capture(AcrossFeatures(), tensors)).program
    assert_rewrites(program, None, SoftmaxAttention(), times=0, misses="is not fixed")


def test_two_attentions_are_two_rewrites(one_attention):
    mix = SPELLINGS["scale behind"][0]
    model = nn.Sequential(one_attention(mix=mix), one_attention(mix=mix)).eval()
    program = Canonicalise()(capture(model, (torch.randn(2, 9, 16),))).program
    assert_rewrites(program, None, SoftmaxAttention(), times=2)


def test_half_precision(one_attention, recognised):
    model = one_attention(mix=cast).bfloat16()
    x = torch.randn(2, 9, 16, dtype=torch.bfloat16)
    result, (site,) = recognised(model, (x,))
    assert site.spec.dtype == torch.bfloat16
    assert_close(result.graph_module(x), model(x))
