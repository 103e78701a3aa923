"""What doesn't look like attention and is: any reading that is exact will do."""

import pytest
import torch
import torch.nn.functional as F
from near import Near, causal, kept_exact, linear_attention, on_key, on_scores, scored, softmax


def router(q, k, v, x, s):
    gates = softmax(s.other(x)[..., :4], -1)
    best, chosen = gates.topk(2, -1)
    return torch.zeros_like(gates).scatter(-1, chosen, best) @ s.other.weight[:4]


def relative(q, k, v, x, s):
    T = x.shape[1]
    offset = (torch.arange(T) - torch.arange(T)[:, None]).clamp(-7, 8) + 7
    by_offset = q @ s.other.weight[:, :8].mT  # (B, H, T, 16): what a query thinks of each offset
    return softmax(scored(q, k) + by_offset.gather(-1, offset.expand(*q.shape[:3], T)), -1) @ v


def residual_scores(q, k, v, x, s):
    first = scored(q, k)
    return softmax(first, -1) @ v + softmax(scored(k, q) + first, -1) @ v


def attention_free(q, k, v, x, s):
    return torch.sigmoid(q) * (softmax(k, 2) * v).sum(2, keepdim=True)


# Attention after all, of which so many sites are found; any reading that is exact will do.
EQUAL = {
    "key exchanged three times": (on_key(lambda k: k.mT.mT), 1),
    "key viewed in place of exchanged": (
        lambda q, k, v, x, s: softmax(q @ k.reshape(*k.shape[:2], k.shape[3], k.shape[2]), -1) @ v,
        1,
    ),
    "heads of the key turned": (on_key(lambda k: k.roll(1, 1)), 1),
    "features of the key reversed": (on_key(lambda k: k.flip(-1)), 1),
    "tokens of the key reversed": (on_key(lambda k: k.flip(2)), 1),
    "query and key exchanged": (lambda q, k, v, x, s: softmax(scored(k, q), -1) @ v, 1),
    "key read elsewhere": (lambda q, k, v, x, s: (softmax(scored(q, k), -1) @ v, k.mT.mean(-1)), 1),
    "query changed after": (lambda q, k, v, x, s: (softmax(scored(q, k), -1) @ v, q.add_(1.0)), 1),
    "value changed before": (lambda q, k, v, x, s: (v[..., 0].zero_(), softmax(scored(q, k), -1) @ v)[1], 1),
    "value changed after": (lambda q, k, v, x, s: (softmax(scored(q, k), -1) @ v, v.zero_())[0], 1),
    "scores changed after": (
        lambda q, k, v, x, s: (softmax(a := scored(q, k), -1) @ v, a.zero_())[0],
        None,
    ),
    "values are keys": (lambda q, k, v, x, s: softmax(scored(q, k), -1) @ k, 1),
    "query is key": (lambda q, k, v, x, s: softmax(scored(q, q), -1) @ q, 1),
    "one learned query": (
        lambda q, k, v, x, s: softmax(scored(s.other.weight[:1, :8].expand(2, 1, 8), k), -1) @ v,
        None,
    ),
    "first token asks": (lambda q, k, v, x, s: softmax(scored(q[:, :, :1], k), -1) @ v, 1),
    "crossed": (
        lambda q, k, v, x, s: softmax(scored(q, (o := s.split(s.other, x))), -1) @ v + softmax(scored(o, k), -1) @ q,
        2,
    ),
    "attention to an attention": (
        lambda q, k, v, x, s: softmax(scored(q, softmax(scored(q, k), -1) @ v), -1) @ v,
        2,
    ),
    "values from an attention": (lambda q, k, v, x, s: softmax(scored(q, k), -1) @ (softmax(scored(k, q), -1) @ v), 2),
    "scores of the layer before": (residual_scores, None),
    "a term of the query": (relative, 1),
    "terms of query and key": (
        lambda q, k, v, x, s: softmax(scored(q, k) + q @ s.split(s.other, x).mT + s.split(s.other, x) @ k.mT, -1) @ v,
        None,
    ),
    "query per token scaled": (lambda q, k, v, x, s: softmax(scored(q * x[:, None, :, :1], k), -1) @ v, 1),
    "normalised": (lambda q, k, v, x, s: softmax(9 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT, -1) @ v, 1),
    "own largest subtracted": (on_scores(lambda a, x, s: a - a.amax(-1, keepdim=True)), 1),
    "float64 within": (
        lambda q, k, v, x, s: (softmax(scored(q.double(), k.double()), -1) @ v.double()).to(v.dtype),
        None,
    ),
    "values transposed": (lambda q, k, v, x, s: (v.mT @ softmax(scored(q, k), -1).mT).mT, None),
    "broadcast product": (
        lambda q, k, v, x, s: (softmax(scored(q, k), -1)[..., None] * v[:, :, None]).sum(-2),
        None,
    ),
    "mask the wrong way": (on_scores(lambda a, x, s: torch.where(causal(x) < 0, a, -1e9)), None),
    "fills over a fill": (
        on_scores(lambda a, x, s: a.masked_fill(causal(x) < 0, -1e9).masked_fill(causal(x).mT < 0, -5.0)),
        None,
    ),
    "a small fill": (on_scores(lambda a, x, s: a.masked_fill(causal(x) < 0, -2.0)), None),
    "mask of the content": (on_scores(lambda a, x, s: a.masked_fill(x[:, None, :, :1] > 0, -1e9)), None),
    "router": (router, 0),
    "linear attention": (linear_attention, 0),
    "attention free": (attention_free, 0),
    "pooled by a layer": (lambda q, k, v, x, s: (softmax(s.other(x)[..., :1], 1) * x).sum(1), 0),
    "gated sum": (lambda q, k, v, x, s: softmax(s.other(x), -1) * x, 0),
}
GROUPED = {
    "tiled by expand": lambda k: k[:, None].expand(-1, 2, -1, -1, -1).reshape(k.shape[0], 4, -1, 8),
    "tiled by cat": lambda k: torch.cat([k, k], 1),
    "repeated in the wrong layout": lambda k: (
        k.transpose(1, 2)[:, :, None].expand(-1, -1, 2, -1, -1).reshape(k.shape[0], -1, 4, 8).transpose(1, 2)
    ),
    "features stretched": lambda k: k[:, :, :, None].expand(-1, -1, -1, 2, -1).reshape(k.shape[0], 4, -1, 8),
    "repeated and turned": lambda k: k.repeat_interleave(2, 1).roll(1, 1),
    "by numbers": lambda k: k.index_select(1, torch.tensor([1, 0, 0, 1])),
}


@pytest.mark.parametrize("name", EQUAL)
def test_what_is_taken_for_attention_is_exact(name):
    mix, count = EQUAL[name]
    sites = kept_exact(Near(mix))
    understood = [site for site in sites if site.spec is not None]
    assert count is None or len(understood) == count, [site.reason for site in sites]
    assert all(site.reason for site in sites if site.spec is None)
    assert understood or count == 0 or sites


@pytest.mark.parametrize("name", GROUPED)
def test_heads_repeated_in_another_order_are_not_grouped_heads(name):
    repeat = GROUPED[name]
    (site,) = kept_exact(
        Near(lambda q, k, v, x, s: softmax(scored(q, repeat(k)), -1) @ repeat(v), heads=4, kv_heads=2),
    )
    assert (site.spec.heads, site.spec.kv_heads) == (4, 4)
