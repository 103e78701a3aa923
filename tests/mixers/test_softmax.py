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


@pytest.mark.parametrize("changes", [
    {"causal": True, "alignment": "end", "cross": True},
    {"causal": True, "alignment": "start", "cross": True},
    {"window": (3, 1), "alignment": "end", "cross": True},
    {"causal": True, "window": (2, 0), "alignment": "end", "cross": True, "dead_rows": "mean"},
])  # fmt: skip
def test_more_keys_than_queries_or_fewer(changes):
    mixer = Softmax(dataclasses.replace(SPEC, **changes))
    for T, S in ((5, 9), (9, 5), (6, 6)):
        inputs = operands(T, S)
        assert_close(mixer(*inputs), mixer.reference(*inputs))
        padding = torch.arange(S)[None] >= torch.tensor([[2], [0]])
        assert_close(mixer(*inputs, padding=padding), mixer.reference(*inputs, padding=padding))


def test_the_last_query_stands_with_the_last_key():
    start, end = (
        Softmax(dataclasses.replace(SPEC, causal=True, cross=True, alignment=side)) for side in ("start", "end")
    )
    query, key, value = operands(3, 8)
    whole = Softmax(dataclasses.replace(SPEC, causal=True))
    long = torch.cat([torch.zeros(2, 4, 5, 8, dtype=torch.float64), query], 2)
    assert_close(end(query, key, value), whole(long, key, value)[:, :, 5:])
    assert_close(start(query, key, value), whole(query, key[:, :, :3], value[:, :, :3]))


@pytest.mark.parametrize("dead_rows", ["zero", "mean", "existing", "all"])
@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_do_not_exist_see_nothing(dead_rows, causal):
    changes = {"padding": True, "pads_queries": True, "dead_rows": dead_rows, "causal": causal}
    mixer, inputs = Softmax(dataclasses.replace(SPEC, **changes)), operands(7, 7)
    padding = torch.arange(7)[None] < torch.tensor([[4], [7]])
    out = mixer(*inputs, padding=padding)
    assert_close(out, mixer.reference(*inputs, padding=padding))
    if dead_rows == "zero":
        assert float(out[0, :, 4:].abs().max()) == 0.0
    served = Softmax(dataclasses.replace(mixer.spec, pads_queries=False))(*inputs, padding=padding)
    assert_close(out.transpose(1, 2), served.transpose(1, 2), where=padding)
    assert float((out - served).abs().max()) > 1e-3


@pytest.mark.parametrize("bias", ["none", "offset"])
@pytest.mark.parametrize("pads_queries", [False, True])
def test_dead_rows_over_the_keys_that_exist(pads_queries, bias):
    changes = {"padding": True, "causal": True, "dead_rows": "existing", "pads_queries": pads_queries, "bias": bias}
    mixer, (query, key, value) = Softmax(dataclasses.replace(SPEC, **changes)), operands(7, 7)
    padding = torch.arange(7)[None] >= torch.tensor([[3], [7]])
    given = {"padding": padding, "bias": torch.randn(4, 13, dtype=torch.float64) if bias == "offset" else None}
    out = mixer(query, key, value, **given)
    assert_close(out, mixer.reference(query, key, value, **given))
    assert_close(out[1, 0], value[1, 0].mean(0).expand_as(out[1, 0]))  # no key exists


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("pads_queries", [False, True])
@pytest.mark.parametrize("dead_rows", ["past", "once"])
def test_dead_rows_of_two_masks_in_a_sum(biased, pads_queries, dead_rows):
    """Two of the lowest number are -inf: some of the hidden keys weigh nothing even in a row of hidden keys."""
    changes = {"padding": True, "causal": True, "dead_rows": dead_rows, "pads_queries": pads_queries}
    spec = dataclasses.replace(SPEC, bias="offset" if biased else "none", **changes)
    windowed, inputs = dataclasses.replace(spec, window=(1, 0), bias="none"), operands(7, 7)
    holes = torch.tensor([[True, False, True, False, False, False, True], [False] + [True] * 6])
    out = Softmax(windowed)(*inputs, padding=holes)
    assert_close(out, Softmax(windowed).reference(*inputs, padding=holes))
    (query, key, value), padding = operands(7, 7), torch.arange(7)[None] >= torch.tensor([[3], [0]])
    bias = torch.randn(4, 13, dtype=torch.float64) if biased else None
    out = Softmax(spec)(query, key, value, padding=padding, bias=bias)
    assert_close(out, Softmax(spec).reference(query, key, value, padding=padding, bias=bias))
    if not pads_queries and dead_rows == "past":
        assert_close(out[0, 0, 2], value[0, 0, :3].mean(0))
    elif not pads_queries:
        hidden = value[0, 0, [0, 1, 2]].mean(0)  # of query 2 all that is not to come, none of which exists
        once = torch.cat([hidden[None] * 3, value[0, 0, 3:]]).sum(0) / 7
        assert_close(out[0, 0, 2], once)


@pytest.mark.parametrize("changes", [
    {}, {"causal": True}, {"causal": True, "window": (3, 0)}, {"softcap": 2.0}, {"dead_rows": "mean"},
    {"bias": "dense"}, {"bias": "offset"},
], ids=str)  # fmt: skip
def test_a_sink_takes_its_share_and_gives_nothing(changes):
    spec = AttentionSpec(
        heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4, padding=True, sink=True, dtype=torch.float64, **changes
    )
    mixer = Softmax(spec)
    assert "sink" in mixer.operands
    tensors = {
        "query": torch.randn(2, 4, 9, 8), "key": torch.randn(2, 2, 9, 8), "value": torch.randn(2, 2, 9, 6),
        "sink": torch.randn(4),
    }  # fmt: skip
    if spec.bias != "none":
        tensors["bias"] = torch.randn((4, 17) if spec.bias == "offset" else (2, 4, 9, 9))
    tensors = {name: tensor.double().requires_grad_() for name, tensor in tensors.items()}
    padding = None if spec.bias == "dense" else torch.arange(9)[None] >= torch.tensor([[0], [4]])
    out, expected = (form(**tensors, padding=padding) for form in (mixer, mixer.reference))
    assert_close(out, expected)
    weight = torch.randn_like(out)
    fast, slow = (torch.autograd.grad((one * weight).sum(), list(tensors.values())) for one in (out, expected))
    assert_close(fast, slow)
    without = {name: tensor for name, tensor in tensors.items() if name != "sink"}
    assert not torch.allclose(out, mixer(**without, padding=padding))
