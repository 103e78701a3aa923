"""Attention written out: masks, and heads in groups."""

import pytest
import torch
from written_out import SCALE, flat

from remixer.testing import assert_close


def repeat_kv(x, groups):
    B, G, S, D = x.shape
    return x[:, :, None].expand(B, G, groups, S, D).reshape(B, G * groups, S, D)


def by_bmm_masked(q, k, v, mask, model):
    scores = torch.bmm(flat(q) * SCALE, flat(k).transpose(1, 2)).view(*q.shape[:3], -1)
    scores = flat(scores.masked_fill(~mask, -torch.inf))
    return torch.bmm(torch.softmax(scores, -1), flat(v)).view(q.shape)


GROUPED = {
    "five dimensions": lambda q, k, v, m, s: (
        torch.softmax(q.unflatten(1, (2, 2)) @ k[:, :, None].mT * SCALE, -1) @ v[:, :, None]
    ).flatten(1, 2),
    "expand": lambda q, k, v, m, s: torch.softmax(q @ repeat_kv(k, 2).mT * SCALE, -1) @ repeat_kv(v, 2),
    "expand, exchanged by dimensions": lambda q, k, v, m, s: (
        torch.softmax(q @ repeat_kv(k, 2).transpose(2, 3) * SCALE, -1) @ repeat_kv(v, 2)
    ),
    "interleave, exchanged by dimensions": lambda q, k, v, m, s: (
        torch.softmax(q @ k.repeat_interleave(2, 1).transpose(-1, -2) * SCALE, -1) @ v.repeat_interleave(2, dim=1)
    ),
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
