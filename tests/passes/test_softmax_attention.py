"""Attention written out: every spelling that is read, and the numbers."""

import math

import pytest
import torch
from torch import nn
from written_out import SCALE, flat, with_sink

from remixer import SoftmaxConfig
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.passes.softmax_attention import SoftmaxAttention
from remixer.rewrite.capture import capture
from remixer.testing import assert_close, assert_rewrites

ABOUT = pytest.approx(SCALE)


def by_bmm(q, k, v, mask, model):
    weights = torch.softmax(torch.bmm(flat(q) * SCALE, flat(k).transpose(1, 2)), -1)
    return torch.bmm(weights, flat(v)).view(q.shape)


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


def softcapped(q, k, v, mask, model):
    return torch.softmax(20.0 * torch.tanh(q @ k.mT * SCALE / 20.0), -1) @ v


def cast(q, k, v, mask, model):
    return torch.softmax(q @ k.mT * SCALE, -1, dtype=torch.float32).to(q.dtype) @ v


def by_product(q, k, v, mask, model):
    """The first GPT's: the mask multiplies the scores, and what it takes away is filled by an addition."""
    kept = model.seen[:, :, : q.shape[2], : k.shape[2]]
    return torch.softmax(q @ k.mT * SCALE * kept + -1e4 * (1 - kept), -1) @ v


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


def test_a_mask_that_multiplies_the_scores(one_attention, recognised):
    model = one_attention(mix=by_product)
    model.register_buffer("seen", torch.ones(1, 1, 64, 64).tril())
    result, (site,) = recognised(model)
    assert (site.spec.scale, site.spec.causal, site.spec.bias) == (ABOUT, True, "none")
    for shape in ((2, 9, 16), (1, 1, 16), (3, 37, 16)):
        x = torch.randn(shape)
        assert_close(result.graph_module(x), model(x))


def filled(q, k, v, mask, model):
    return torch.softmax((q @ k.mT * SCALE).masked_fill(~mask, -1e4), -1) @ v


def filled_and_padded(q, k, v, mask, model):
    past = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    padding = (1.0 - mask.float()) * torch.finfo(torch.float32).min
    return torch.softmax(torch.where(past, q @ k.mT * SCALE, torch.full([], -1e4)) + padding, -1) @ v


@pytest.mark.parametrize(("mix", "dead_rows"), [(filled, "mean"), (filled_and_padded, "existing")])
def test_what_is_filled_in_leaves_nothing_of_the_scores(mix, dead_rows, one_attention, recognised):
    """Where -10,000 is added, scores still differ in a row of hidden keys; where it is filled in, they don't."""
    model = one_attention(mask=lambda T, keep, s: keep[:, None, None], mix=mix)
    result, (site,) = recognised(model)
    assert (site.spec.padding, site.spec.causal, site.spec.dead_rows) == (True, mix is not filled, dead_rows)
    keep = torch.ones(3, 7, dtype=torch.bool)
    keep[0, :3], keep[1, 5:], keep[2] = False, False, mix is not filled
    x = torch.randn(3, 7, 16)
    assert_close(result.graph_module(x, keep), model(x, keep))


def test_a_mask_that_multiplies_the_scores_may_hold_no_other_numbers(one_attention, recognised):
    model = one_attention(mix=by_product)
    model.register_buffer("seen", torch.ones(1, 1, 64, 64).tril() + 0.5 * torch.eye(64))
    result, sites = recognised(model)
    assert not sites
    assert "multiplied by a tensor" in str(result.misses[0])


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


def test_one_key_and_value_for_all_heads(one_attention, recognised):
    model = one_attention(mix=SPELLINGS["scale behind"][0], heads=4, kv_heads=1, width=32)
    _, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 1)


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
