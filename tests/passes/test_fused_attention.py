"""scaled_dot_product_attention in all its options."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from remixer.passes.canonicalise import Canonicalise
from remixer.passes.fused_attention import FusedAttention
from remixer.passes.pipelines import recognition
from remixer.passes.sites import sites_of
from remixer.rewrite.capture import capture
from remixer.testing import assert_close, assert_rewrites

sdpa = F.scaled_dot_product_attention


def repeat_kv(x, groups):
    B, G, S, D = x.shape
    return x[:, :, None].expand(B, G, groups, S, D).reshape(B, G * groups, S, D)


MIXES = {
    "plain": (lambda q, k, v, m, s: sdpa(q, k, v), {"scale": pytest.approx(8**-0.5), "causal": False}),
    "causal": (lambda q, k, v, m, s: sdpa(q, k, v, is_causal=True), {"causal": True}),
    "scale": (lambda q, k, v, m, s: sdpa(q, k, v, scale=0.1), {"scale": 0.1}),
    "three dimensions": (
        lambda q, k, v, m, s: sdpa(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).view(q.shape),
        {"heads": 2, "scale": pytest.approx(8**-0.5)},
    ),
    "dropout": (lambda q, k, v, m, s: sdpa(q, k, v, dropout_p=0.2 * s.training), {"dropout": 0.2}),
}


@pytest.mark.parametrize("name", MIXES)
def test_options(name, one_attention, recognised):
    mix, expected = MIXES[name]
    model = one_attention(mix=mix)
    result, (site,) = recognised(model)
    assert (site.record.rule, site.record.kind) == ("FusedAttention", "OneAttention")
    assert ".py:" in site.record.source
    for field, value in expected.items():
        assert getattr(site.spec, field) == value
    assert site.spec.source_dim == 16
    x = torch.randn(3, 6, 16)
    assert_close(result.graph_module(x), model(x))


@pytest.mark.parametrize("mix", [
    lambda q, k, v, m, s: sdpa(q, repeat_kv(k, 2), repeat_kv(v, 2)),
    lambda q, k, v, m, s: sdpa(q, k, v, enable_gqa=True),
    lambda q, k, v, m, s: sdpa(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)),
])  # fmt: skip
def test_grouped_heads(mix, one_attention, recognised):
    model = one_attention(mix=mix, heads=4, kv_heads=2, width=32)
    result, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 2)
    x = torch.randn(1, 5, 32)
    assert_close(result.graph_module(x), model(x))


class Attend(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.attend = forward

    def forward(self, *args):
        return self.attend(*args)


def heads(*lengths):
    return tuple(torch.randn(2, length, 32) for length in lengths)


def split(x):
    return x.unflatten(-1, (4, 8)).transpose(1, 2)


def test_queries_and_keys_of_two_lengths_are_cross_attention():
    model = Attend(lambda x, y: sdpa(split(x), split(y), split(y)))
    result = recognition()(capture(model, heads(7, 12)))
    (site,) = sites_of(result.program)
    assert site.spec.cross
    inputs = heads(3, 5)
    assert_close(result.graph_module(*inputs), model(*inputs))


def test_values_of_another_size():
    model = Attend(lambda x: sdpa(split(x), split(x), x.unflatten(-1, (4, 8)).transpose(1, 2)[..., :6]))
    (site,) = sites_of(recognition()(capture(model, heads(7))).program)
    assert (site.spec.head_dim, site.spec.value_dim) == (8, 6)


NEAR = {
    "features as tokens": (
        lambda x: sdpa(split(x).mT, split(x).mT, split(x).mT),
        1,
        "expected (B, H, T, D) with a fixed D",
    ),
    "causal cross": (
        lambda x, y: sdpa(split(x), split(y), split(y), is_causal=True),
        2,
        "which keys a query sees depends on the backend",
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses(name):
    forward, count, reason = NEAR[name]
    program = Canonicalise()(capture(Attend(forward), heads(7, 12)[:count])).program
    assert_rewrites(program, None, FusedAttention(), times=0, misses=reason)


def test_a_scale_that_the_graph_computes_is_a_miss():
    program = capture(Attend(lambda x: sdpa(split(x), split(x), split(x))), heads(7))
    (attention,) = program.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    length = program.graph.find_nodes(op="placeholder")[0]
    with program.graph.inserting_before(attention):
        scale = program.graph.call_function(torch.ops.aten.sym_size.int, (length, 1))
    attention.update_kwarg("scale", scale)
    program.graph_module.recompile()
    assert_rewrites(program, None, FusedAttention(), times=0, misses="the scale is computed")


def test_every_attention_is_one_rewrite():
    model = Attend(lambda x: sdpa(split(x), split(x), split(x)) + sdpa(split(x), split(x), split(x * 2)))
    assert_rewrites(Canonicalise()(capture(model, heads(7))).program, None, FusedAttention(), times=2)


def test_sequence_first_encoder_layers():
    layer = nn.TransformerEncoderLayer(32, 4, 64).eval()
    result = recognition()(capture(layer, (torch.randn(7, 2, 32),)))
    (site,) = sites_of(result.program)
    assert (site.spec.heads, site.spec.dropout) == (4, 0.1)
    x = torch.randn(5, 3, 32)
    assert_close(result.graph_module(x), layer(x))


def test_a_softmax_over_pairs_without_values_is_told():
    class Weights(nn.Module):
        def forward(self, x):
            return torch.softmax(x @ x.mT, -1)

    result = recognition()(capture(Weights(), heads(7)))
    assert "is in no product with values" in result.misses[0].reason


def test_two_sequences_of_one_example_length_are_still_two():
    """(T, B, C) inputs of the same length in the example: their first dimensions are no common batch."""
    model = Attend(lambda x, y: sdpa(*(split(z.transpose(0, 1)) for z in (x, y, y))))
    result = recognition()(capture(model, (torch.randn(7, 2, 32), torch.randn(7, 2, 32))))
    (site,) = sites_of(result.program)
    assert site.spec.cross
    inputs = torch.randn(5, 3, 32), torch.randn(9, 3, 32)
    assert_close(result.graph_module(*inputs), model(*inputs))
