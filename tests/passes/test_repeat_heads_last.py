"""Heads that are repeated before they are brought into place, or without a new dimension."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from remixer.passes.repeat_heads_last import RepeatHeadsLast
from remixer.rewrite.capture import capture
from remixer.testing import assert_close


def fused(repeat):
    return lambda q, k, v, m, s: F.scaled_dot_product_attention(q, repeat(k, q), repeat(v, q))


def by_softmax(repeat):
    return lambda q, k, v, m, s: torch.softmax(q @ repeat(k, q).mT, -1) @ repeat(v, q)


def tokens_first(repeat):
    """Repeats the heads of (B, S, G, D)."""
    return lambda x, q: repeat(x.transpose(1, 2)).transpose(1, 2)


GROUPS = {  # (B, G, S, D) of two heads to (B, H, S, D) of four
    "stretched behind tokens": tokens_first(lambda x: x.unsqueeze(3).expand(-1, -1, -1, 2, -1).flatten(2, 3)),
    "copied behind tokens": tokens_first(
        lambda x: x.unflatten(2, (2, 1)).expand(-1, -1, -1, 2, -1).contiguous().reshape(*x.shape[:2], 4, -1)
    ),
    "interleaved behind tokens": tokens_first(lambda x: x.repeat_interleave(2, 2)),
    "permuted": lambda x, q: x.permute(2, 0, 1, 3).repeat_interleave(2, 2).permute(1, 2, 0, 3),
    "without a new dimension": lambda x, q: x.unflatten(1, (2, 1)).expand(-1, -1, 2, -1, -1).flatten(1, 2),
    "in place, merged by flatten": lambda x, q: x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2),
}
ONE = {  # (B, 1, S, D) to (B, 4, S, D)
    "expanded": lambda x, q: x.expand(-1, 4, -1, -1),
    "expanded as the query": lambda x, q: x.expand_as(q),
    "broadcast": lambda x, q: torch.broadcast_to(x, q.shape),
}
SPELLINGS = [(name, repeat, 2) for name, repeat in GROUPS.items()] + [(name, repeat, 1) for name, repeat in ONE.items()]


@pytest.mark.parametrize("attention", [fused, by_softmax])
@pytest.mark.parametrize(("name", "repeat", "kv_heads"), SPELLINGS, ids=[name for name, _, _ in SPELLINGS])
def test_read_as_grouped_heads(name, repeat, kv_heads, attention, one_attention, recognised):
    model = one_attention(mix=attention(repeat), heads=4, kv_heads=kv_heads, width=32)
    result, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, kv_heads)
    for shape in ((1, 1, 32), (3, 5, 32)):
        x = torch.randn(shape)
        assert_close(result.graph_module(x), model(x))


OTHERS = {
    "tiled": tokens_first(lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(2, 3)),
    "features repeated": lambda x, q: x.transpose(2, 3).repeat_interleave(2, 1).transpose(2, 3).roll(1, 1),
    "tokens and heads exchanged": lambda x, q: x.flatten(1, 2).unflatten(1, (-1, 2)).transpose(1, 2).repeat(1, 2, 1, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_order_of_heads_is_exact(name, one_attention, recognised):
    model = one_attention(mix=fused(OTHERS[name]), heads=4, kv_heads=2, width=32)
    result, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 4)
    x = torch.randn(3, 5, 32)
    assert_close(result.graph_module(x), model(x))


@pytest.mark.parametrize("attention", [fused, by_softmax])
def test_a_key_and_value_that_are_repeated_in_two_ways_are_taken_whole(attention, one_attention, recognised):
    mix = attention(lambda x, q: x.expand(-1, 4, -1, -1))
    tiled = one_attention(
        mix=lambda q, k, v, m, s: mix(q, k, v.repeat(1, 4, 1, 1), m, s), heads=4, kv_heads=1, width=32
    )
    result, (site,) = recognised(tiled, (torch.randn(2, 9, 32),))
    assert (site.spec.heads, site.spec.kv_heads) == (4, 4)
    x = torch.randn(3, 5, 32)
    assert_close(result.graph_module(x), tiled(x))


def test_what_is_written_into_stays():
    class Written(nn.Module):
        def forward(self, x):  # (B, S, G, D)
            x = x + 1.0
            repeated = x.unsqueeze(3).expand(-1, -1, -1, 1, -1).flatten(2, 3).transpose(1, 2)
            x[:, 0].zero_()
            return repeated

    x = torch.randn(2, 5, 3, 4)
    result = RepeatHeadsLast()(capture(Written(), (x,)))
    assert not result.rewrites
    assert_close(result.program.graph_module(x), Written()(x))
