import dataclasses

import pytest
import torch
import torch.nn.functional as F

from remixer.mixers import AttentionSpec, Softmax
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4)


def operands(T, S):
    torch.manual_seed(T * S)
    shapes = ((2, 4, T, 8), (2, 2, S, 8), (2, 2, S, 6))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"causal": True},
        {"softcap": 1.5},
        {"causal": True, "softcap": 1.5},
        {"window": (3, 2)},
        {"causal": True, "window": (3, 0), "softcap": 1.5},
    ],
    ids=str,
)
def test_forward_is_the_reference(changes):
    mixer, inputs = Softmax(dataclasses.replace(SPEC, **changes)), operands(11, 11)
    assert_close(mixer(*inputs), mixer.reference(*inputs))
    padding = torch.arange(11)[None] >= torch.tensor([[4], [0]])
    assert_close(mixer(*inputs, padding=padding), mixer.reference(*inputs, padding=padding))


def test_cross_attention():
    mixer, inputs = Softmax(dataclasses.replace(SPEC, cross=True)), operands(5, 9)
    assert_close(mixer(*inputs), mixer.reference(*inputs))


@pytest.mark.parametrize("kind", ["added", "bool"])
def test_a_bias_carries_the_whole_mask(kind):
    mixer, inputs = Softmax(dataclasses.replace(SPEC, bias="dense")), operands(5, 5)
    assert mixer.operands == ("query", "key", "value", "bias")
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    bias = bias if kind == "added" else (bias > 0) | torch.eye(5, dtype=torch.bool)
    assert_close(mixer(*inputs, bias=bias), mixer.reference(*inputs, bias=bias))


def test_dead_rows_give_zero_or_the_mean():
    inputs = operands(4, 4)
    padding = torch.zeros(2, 4, dtype=torch.bool)
    for dead_rows, expected in (("zero", torch.zeros(())), ("mean", inputs[2][0, 0].mean(0))):
        out = Softmax(dataclasses.replace(SPEC, dead_rows=dead_rows))(*inputs, padding=padding)
        assert_close(out[0, 0], expected.expand(4, 6).double())


def test_dropout_acts_in_training_only():
    mixer, inputs = Softmax(dataclasses.replace(SPEC, dropout=0.5)), operands(9, 9)
    assert_close(mixer.eval()(*inputs), mixer.reference(*inputs))
    assert float((mixer.train()(*inputs) - mixer.reference(*inputs)).abs().max()) > 1e-3


def test_it_is_the_fused_operator():
    query, key, value = operands(7, 7)
    exact = F.scaled_dot_product_attention(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), scale=0.4)
    assert_close(Softmax(SPEC)(query, key, value), exact)
