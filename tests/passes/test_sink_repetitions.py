"""Heads that are repeated before something is done to all copies alike."""

import pytest
import torch
import torch.nn.functional as F

from remixer.testing import assert_close

TILED = (lambda x: x.repeat_interleave(2, 1), lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2))


def angles(x):
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / torch.tensor([1.0, 10, 100, 1000])
    return torch.cat([angle, angle], -1)


def by_slices(x):
    return torch.cat([-x[..., 4:], x[..., :4]], -1)


def by_chunks(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def by_split(x):
    first, second = x.split(4, dim=-1)
    return torch.cat([-second, first], -1)


def by_sizes(x):
    first, second = x.split([3, 5], dim=-1)
    return torch.cat([-second, first], -1)


def rotary(halves):
    return lambda x: x * angles(x).cos() + halves(x) * angles(x).sin()


ALIKE = {  # of (B, H, S, D), each copy of a head like the others
    **{half.__name__: rotary(half) for half in (by_slices, by_chunks, by_split, by_sizes)},
    "a number": lambda x: x * 0.5 + 1,
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "rms norm": lambda x: F.rms_norm(x, (8,)),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "a reshape that does nothing": lambda x: x.reshape(x.shape[0], 4, x.shape[2], 8).sigmoid(),
    "as another tensor's type": lambda x: x.double().type_as(x),
    "the mean of all tokens": lambda x: x - x.mean(2, keepdim=True),
}
APART = {
    "a weight per head": lambda x: x * torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1),
    "heads exchanged": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "every other head": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "the mean of all heads": lambda x: x - x.mean(1, keepdim=True) * torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1),
    "the mean of everything": lambda x: x - x.mean((0, 1, 2, 3), keepdim=True) * torch.arange(4.0).view(4, 1, 1),
    "one head of the type of all": lambda x: x * torch.arange(4).view(4, 1, 1).type_as(x),
    "a norm over tokens and heads": lambda x: F.layer_norm(x.transpose(1, 3), (4,), torch.arange(4.0)).transpose(1, 3),
}


def fused(repeat, done):
    return lambda q, k, v, m, s: F.scaled_dot_product_attention(q, done(repeat(k)), repeat(v))


def by_softmax(repeat, done):
    return lambda q, k, v, m, s: torch.softmax(q @ done(repeat(k)).mT, -1) @ repeat(v)


def read(mix, one_attention, recognised):
    """Heads and key heads of what is recognised, which computes what its model does."""
    model = one_attention(mix=mix, heads=4, kv_heads=2, width=32)
    result, (site,) = recognised(model, (torch.randn(2, 9, 32),))
    for shape in ((1, 1, 32), (3, 5, 32)):
        x = torch.randn(shape)
        assert_close(result.graph_module(x), model(x))
    return site.spec.heads, site.spec.kv_heads


@pytest.mark.parametrize("attention", [fused, by_softmax])
@pytest.mark.parametrize("repeat", TILED, ids=["interleaved", "stretched"])
@pytest.mark.parametrize("name", ALIKE)
def test_grouped_heads_stay_grouped(name, repeat, attention, one_attention, recognised):
    assert read(attention(repeat, ALIKE[name]), one_attention, recognised) == (4, 2)


@pytest.mark.parametrize("repeat", TILED, ids=["interleaved", "stretched"])
@pytest.mark.parametrize("name", APART)
def test_copies_that_are_told_apart_are_heads_of_their_own(name, repeat, one_attention, recognised):
    assert read(fused(repeat, APART[name]), one_attention, recognised) == (4, 4)


@pytest.mark.parametrize("repeat", TILED, ids=["interleaved", "stretched"])
def test_value_heads_too(repeat, one_attention, recognised):
    def mix(q, k, v, m, s):
        return F.scaled_dot_product_attention(q, repeat(k), repeat(v) * 2 + repeat(k).tanh())

    assert read(mix, one_attention, recognised) == (4, 2)


def test_two_different_repetitions_are_left_alone(one_attention, recognised):
    def mix(q, k, v, m, s):
        return F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1) + v.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1))

    assert read(mix, one_attention, recognised) == (4, 4)
