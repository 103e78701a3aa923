"""Attention that is nearly written out, and the reasons."""

import pytest
import torch
from torch import nn
from written_out import with_sink

from remixer.passes.canonicalise import Canonicalise
from remixer.passes.softmax_attention import SoftmaxAttention
from remixer.rewrite.capture import capture
from remixer.testing import assert_rewrites

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
    assert_rewrites(program, None, SoftmaxAttention(), times=0, misses="is also read by the output")


def test_features_that_attend_to_each_other_have_no_fixed_head_size():
    class AcrossFeatures(nn.Module):
        def forward(self, q, k, v):  # (B, H, T, D), attention between the D features
            return torch.softmax(q.mT @ k, -1) @ v.mT

    tensors = tuple(torch.randn(2, 3, 7, 8) for _ in range(3))
    program = Canonicalise()(capture(AcrossFeatures(), tensors)).program
    assert_rewrites(program, None, SoftmaxAttention(), times=0, misses="is not fixed")
