"""Biases that go by something else than the offset: kept dense with the reason."""

import pytest
import torch
import torch.nn.functional as F
from bias_forms import inputs_of, looked_up, offsets
from torch import nn

from remixer import LongShort, SoftmaxConfig
from remixer.mixers import Softmax
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.testing import assert_close

DENSE = {
    "by position": (
        lambda T, keep, m: m.table(torch.arange(T) % 16)[None, None, :, :1].expand(1, 1, T, T) * offsets(T),
        "its bias is not read from the table table.weight, one entry for each head and offset",
    ),
    "a product of entries": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m) ** 2,
        "its bias is not read from the table table.weight, one entry for each head and offset",
    ),
    "a table plus something else": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m) - offsets(T).abs() / 64,
        "its bias is not read from the table table.weight, one entry for each head and offset",
    ),
    "rectified entries": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m).relu(),
        "its bias has no one value per head and offset",
    ),
    "entries without their sign": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m).abs(),
        "its bias has no one value per head and offset",
    ),
    "entries that are clipped": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m).clamp(min=-9.0),
        "its bias has no one value per head and offset",
    ),
    "two tables": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m) + m.query.weight[0, 0],
        "its bias is computed from several parameters, query.weight, table.weight",
    ),
    "by length": (lambda T, keep, m: -(offsets(T).abs() / T)[None, None], "its bias is not linear in the offset"),
    "squared": (lambda T, keep, m: -offsets(T).square()[None, None] / 64.0, "its bias is not linear in the offset"),
    "almost linear": (
        lambda T, keep, m: -offsets(T).abs().clamp(max=300)[None, None] * 0.015625,
        "its bias is not linear in the offset",
    ),
    "rounded": (
        lambda T, keep, m: (-0.3 * offsets(T).abs()).bfloat16().float()[None, None],
        "its bias is linear in the offset, but rounded to half precision in between",
    ),
    "periodic": (
        lambda T, keep, m: looked_up(offsets(T) % 16, m),
        "its bias may still change beyond an offset of 1024",
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_kept_dense_with_the_reason(name, one_attention, recognised):
    mask, reason = DENSE[name]
    model = one_attention(mask, heads=4, width=32)
    if "not linear" not in reason and "is linear" not in reason:
        model.table = nn.Embedding(16, 4)
    inputs = inputs_of(model, 2, 9)
    result, (site,) = recognised(model, inputs)
    assert site.spec.bias == "dense"
    assert site.record.note == reason
    assert site.record.error is not None
    kept = replacement(Selection.of({"*": LongShort()}))(result.program)
    assert [miss.reason for miss in kept.misses] == [
        f"'long_short' can't carry a dense bias over to a window ({reason})"
    ]
    exact = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program).graph_module
    for T in (9, 40):
        other = inputs_of(model, 2, T)
        assert_close(exact(**other), model(**other))


def test_queries_and_keys_of_two_sequences_keep_their_bias_dense(recognised):
    class Cross(nn.Module):
        def forward(self, x, memory):
            query, key = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (x, memory))
            offset = torch.arange(memory.shape[1]) - torch.arange(x.shape[1])[:, None]
            return F.scaled_dot_product_attention(query, key, key, attn_mask=-offset.abs().float())

    _, (site,) = recognised(Cross(), (torch.randn(2, 5, 16), torch.randn(2, 9, 16)))
    assert site.spec.bias == "dense"
    assert site.record.note == "queries and keys of its bias are not positions of one sequence"
    assert isinstance(site.mixer, Softmax)
