"""Biases that grow with the distance by slopes that are learned: the slopes stay where they are, and train."""

import pytest
import torch
import torch.nn.functional as F
from bias_forms import causal, counted, inputs_of, offsets, padded
from torch import nn

import remixer
from remixer import LongShort
from remixer.testing import assert_close

# shape of the parameter, mask
FORMS = {
    "of the distance": ((4, 1, 1), lambda T, keep, m: -m.slopes * offsets(T).abs()),
    "one for each head": ((4,), lambda T, keep, m: m.slopes[:, None, None] * offsets(T) + causal(T, keep)),
    "one for all heads": ((1,), lambda T, keep, m: -m.slopes * offsets(T).abs()[None] + padded(keep)),
    "times a number of the head": (
        (4, 1, 1),
        lambda T, keep, m: m.slopes * torch.arange(1.0, 5.0)[:, None, None] * offsets(T) + causal(T),
    ),
    "softplus": ((4, 1, 1), lambda T, keep, m: -F.softplus(m.slopes) * offsets(T).abs() + padded(keep)),
    "exp, by key": ((4, 1, 1), lambda T, keep, m: m.slopes.exp() * torch.arange(T) + causal(T, keep)),
    "by existing key": ((4, 1), lambda T, keep, m: (m.slopes * counted(keep)[:, None])[:, :, None] + causal(T, keep)),
    "of two parameters": ((4, 1, 1), lambda T, keep, m: -m.slopes * m.query.bias[:4, None, None] * offsets(T).abs()),
    "by length": ((4, 1, 1), lambda T, keep, m: -m.slopes / T * offsets(T).abs()),
}


def sloped(one_attention, shape, mask):
    model = one_attention(mask, heads=4, width=32).eval()
    model.slopes = nn.Parameter(torch.rand(shape) / 2)
    return model


@pytest.mark.parametrize("name", FORMS)
def test_read_by_offset_with_values_and_gradients_of_the_slopes(name, one_attention):
    model = sloped(one_attention, *FORMS[name])
    small = remixer.remix(model, LongShort(window=200, rank=0), inputs_of(model, 2, 9), strict=True)
    (site,) = small.report.sites
    assert (site.spec.bias, small.report.order) == ("offset", "n")
    learned = small.get_parameter("slopes")
    for step in range(2):
        inputs = inputs_of(model, 2, 30 + step)
        alive = inputs["keep"] if site.spec.padding else torch.ones_like(inputs["keep"])
        results = [module(**inputs) for module in (small, model)]
        assert_close(*results, where=alive)
        losses = ((result * alive[..., None]).square().sum() for result in results)
        gradients = [
            torch.autograd.grad(loss, slopes) for loss, slopes in zip(losses, (learned, model.slopes), strict=True)
        ]
        assert float(gradients[1][0].abs().max()) > 0
        assert_close(*gradients)
        with torch.no_grad():  # what is learned later is followed
            for slopes in (learned, model.slopes):
                slopes.sub_(1.0)


DENSE = {
    "rectified": (lambda T, keep, m: (m.slopes * offsets(T).abs()).relu(), "nor linear in the offset by"),
    "clipped": (lambda T, keep, m: (m.slopes * offsets(T).abs()).clamp(min=-50.0), "nor linear in the offset by"),
    "logarithmic": (lambda T, keep, m: -m.slopes * (1 + offsets(T).abs()).log(), "nor linear in the offset by"),
    "and what is read beside it": (
        lambda T, keep, m: -m.slopes * offsets(T).abs() * m.query.weight[:4, :4].mean(),
        "its bias is computed from several parameters, query.weight, slopes",
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_something_else_is_kept_exact(name, one_attention):
    mask, words = DENSE[name]
    model = sloped(one_attention, (4, 1, 1), mask)
    with torch.no_grad():
        model.slopes[0] = -1.0
    (site,) = remixer.explain(model, inputs_of(model, 2, 9)).sites
    assert site.spec.bias == "dense"
    assert words in site.reason
    small = remixer.remix(model, "softmax", inputs_of(model, 2, 9))
    inputs = inputs_of(model, 2, 90)
    assert_close(small(**inputs), model(**inputs))


def test_entries_for_distances_that_are_as_many_as_heads_are_no_slopes(one_attention):
    model = sloped(one_attention, (4,), lambda T, keep, m: m.slopes[offsets(T).abs().clamp(max=3)])
    small = remixer.remix(model, LongShort(window=200, rank=0), inputs_of(model, 2, 9), strict=True)
    inputs = inputs_of(model, 2, 30)
    assert_close(small(**inputs), model(**inputs))


def test_a_sequence_beyond_the_end_of_a_table_is_refused(one_attention):
    """As the original does; up to the very end the two are the same."""
    model = one_attention(lambda T, keep, m: m.table[:, offsets(T) + 99], heads=4, width=32).eval()
    model.table = nn.Parameter(torch.randn(4, 199))
    small = remixer.remix(model, LongShort(window=200, rank=0), inputs_of(model, 2, 9), strict=True)
    inputs = inputs_of(model, 2, 100)
    assert_close(small(**inputs), model(**inputs))
    longer = inputs_of(model, 2, 101)
    with pytest.raises(IndexError):
        model(**longer)
    with pytest.raises(RuntimeError, match="has values for sequences of up to 100 tokens"):
        small(**longer)
