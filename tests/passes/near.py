"""A module that is attention, or nearly, beside one that is; and how what is made of it is checked."""

import torch
import torch.nn.functional as F
from torch import nn

import remixer
from remixer.testing import assert_close

UNSEEN = [(1, 1), (3, 7), (2, 26)]
SCALE = 8**-0.5
softmax, BETWEEN = torch.softmax, "expected a softmax between two products, found aten."


class Near(nn.Module):
    """Two heads of 8, mixed by `mix(query, key, value, x, self)`; `other` is a projection to play with."""

    def __init__(self, mix, heads=2, kv_heads=2):
        super().__init__()
        self.mix, self.heads, self.kv_heads = mix, heads, kv_heads
        self.query, self.other = nn.Linear(16, heads * 8), nn.Linear(16, heads * 8)
        self.key, self.value = nn.Linear(16, kv_heads * 8), nn.Linear(16, kv_heads * 8)

    def split(self, layer, x):
        return layer(x).unflatten(-1, (-1, 8)).transpose(1, 2)

    def forward(self, x):
        operands = (self.split(layer, x) for layer in (self.query, self.key, self.value))
        return self.mix(*operands, x, self)


class Pair(nn.Module):
    """A near miss and a true attention."""

    def __init__(self, near):
        super().__init__()
        self.near, self.true = near, Near(lambda q, k, v, x, s: softmax(scored(q, k), -1) @ v)

    def forward(self, x):
        return self.near(x), self.true(x)


def scored(q, k):
    return q @ k.mT * SCALE


def causal(x, hidden=-torch.inf):
    return torch.zeros(x.shape[1], x.shape[1]).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1) > 0, hidden)


def on_scores(change):
    """softmax(change(scores, x, module)) V."""
    return lambda q, k, v, x, s: softmax(change(scored(q, k), x, s), -1) @ v


def on_weights(change):
    """change(softmax(scores)) V."""
    return lambda q, k, v, x, s: change(softmax(scored(q, k), -1), x, s) @ v


def on_key(change):
    return lambda q, k, v, x, s: softmax(scored(q, change(k)), -1) @ v


def written(change):
    """The scores after a change in place whose result nobody reads."""

    def mix(q, k, v, x, s):
        scores = scored(q, k)
        change(scores, x)
        return softmax(scores, -1) @ v

    return mix


def linear_attention(q, k, v, x, s):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(2, keepdim=True).mT)


def kept_exact(near):
    """What is reported of the near miss, after the outputs were compared at sizes not seen."""
    model = Pair(near).eval()
    small = remixer.remix(model, "softmax", {"x": torch.randn(2, 9, 16)})
    for batch, length in UNSEEN:
        x = torch.randn(batch, length, 16)
        assert_close(small(x), model(x))
    sites = small.report.sites
    assert "true" in {site.name for site in sites if site.spec is not None and site.error < 1e-5}
    return [site for site in sites if site.name != "true"]
