"""Biases by offset, as models make them."""

import math

import torch
from torch import nn

LOWEST = torch.finfo(torch.float32).min


def offsets(T):
    return torch.arange(T) - torch.arange(T)[:, None]  # s - t


def hidden(seen, number=LOWEST):
    return torch.zeros(seen.shape).masked_fill(~seen, number)


def padded(keep):
    return hidden(keep[:, None, None, :])


def causal(T, keep=None):
    seen = (offsets(T) <= 0)[None, None]
    return hidden(seen if keep is None else seen & keep[:, None, None, :])


def bucket(offset, count=32, farthest=128):
    """The buckets of T5, bidirectional: exact up to a quarter of the count, then logarithmic."""
    side = count // 2
    exact, distance = side // 2, offset.abs()
    scale = (side - exact) / math.log(farthest / exact)
    far = exact + (torch.log(distance.float() / exact) * scale).long()
    return (offset > 0).long() * side + torch.where(distance < exact, distance, far.clamp(max=side - 1))


def looked_up(rows, model):
    return model.table(rows).permute(2, 0, 1)[None]


def slopes(heads):
    """ALiBi's slopes for any number of heads (Press et al., 2022)."""
    power = 2 ** math.floor(math.log2(heads))
    base = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    more = [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    return torch.tensor(base + more)[:, None, None]


def counted(keep):
    return (keep.long().cumsum(1) - 1) * keep


# mask, rows of the table or None, what the spec must say
FORMS = {
    "clamped": (lambda T, keep, m: looked_up(offsets(T).clamp(-9, 9) + 9, m), 19, {}),
    "buckets": (lambda T, keep, m: looked_up(bucket(offsets(T)), m) + padded(keep), 32, {"padding": True}),
    "coarse buckets": (lambda T, keep, m: looked_up(bucket(offsets(T), 8), m) + padded(keep), 8, {"padding": True}),
    "far buckets": (lambda T, keep, m: looked_up(bucket(offsets(T), 32, 700), m), 32, {}),
    "causal": (
        lambda T, keep, m: looked_up((-offsets(T)).clamp(0, 20), m) + causal(T, keep),
        21,
        {"causal": True, "padding": True},
    ),
    "times a number": (lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=7), m) * 0.3 + padded(keep), 8, {}),
    "negative": (lambda T, keep, m: padded(keep) - looked_up(offsets(T).abs().clamp(max=7), m), 8, {}),
    "in a window": (
        lambda T, keep, m: looked_up(offsets(T).clamp(-12, 12) + 12, m) + hidden(offsets(T).abs() <= 5),
        25,
        {"window": (5, 5)},
    ),
    "a table that ends": (lambda T, keep, m: looked_up(offsets(T) + 99, m), 199, {}),
    "slopes": (lambda T, keep, m: slopes(4) * offsets(T) + causal(T), None, {"causal": True}),
    "slopes of 6 heads": (lambda T, keep, m: slopes(6) * offsets(T) + causal(T), None, {"causal": True}),
    "slopes by key": (
        lambda T, keep, m: slopes(4) * torch.arange(T) + causal(T, keep),
        None,
        {"causal": True, "padding": True, "skips_padding": False},
    ),
    "slopes by key, from the end": (
        lambda T, keep, m: slopes(4) * (torch.arange(T) - (T - 1)) + causal(T, keep),
        None,
        {"causal": True, "padding": True, "skips_padding": False},
    ),
    "slopes by existing key": (
        lambda T, keep, m: slopes(6) * counted(keep)[:, None, None] + causal(T, keep),
        None,
        {"causal": True, "padding": True, "skips_padding": True},
    ),
    "slopes on both sides": (
        lambda T, keep, m: -slopes(4) * offsets(T).abs() + padded(keep),
        None,
        {"padding": True, "skips_padding": False},
    ),
    "slopes that differ by side": (
        lambda T, keep, m: slopes(4) * (offsets(T).clamp(max=0) - 0.5 * offsets(T).clamp(min=0)),
        None,
        {},
    ),
}


def model_of(one_attention, name):
    mask, rows, expected = FORMS[name]
    heads = 6 if "6" in name or "existing" in name else 4
    model = one_attention(mask, heads=heads, width=8 * heads)
    if rows is not None:
        model.table = nn.Embedding(rows, heads)
        nn.init.zeros_(model.table.weight)  # at zero it looks like no bias: it is randomised for the trials
    return model, expected


def inputs_of(model, B, T, kind="right"):
    keep = torch.ones(B, T, dtype=torch.bool)
    place = torch.arange(T)
    keep[-1] = {"right": place < max(1, T - T // 3), "left": place >= T // 3, "holes": place % 4 != 1}[kind]
    return {"x": torch.randn(B, T, model.query.in_features), "keep": keep}
