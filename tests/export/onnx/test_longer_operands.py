"""Lengths that mixers are exported at."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from remixer.export.onnx.longer_operands import longer_operands


@pytest.fixture(scope="module")
def sizes():
    """Three symbols: B of 2, T of 11, and one that stands nowhere by itself, of 6."""
    given = torch.zeros(2, 11, 6)
    source = torch.export.export(nn.Identity(), (given,), dynamic_shapes=((Dim.DYNAMIC,) * 3,))
    (node,) = source.graph.find_nodes(op="placeholder")
    return node.meta["val"].fake_mode, node.meta["val"].shape


def like(mode, *shape):
    with mode:
        return torch.empty(shape)


def test_lengths_are_longer_and_samples_and_features_are_not(sizes):
    mode, (B, T, _) = sizes
    call = ((torch.ones(2, 4, 11, 8), torch.ones(2, 11, dtype=torch.bool)), {"scale": 0.5, "bias": None})
    recorded = ((like(mode, B, 4, T, 8), like(mode, B, T)), {"scale": 0.5, "bias": None})
    (query, mask), others = longer_operands(call, recorded)
    assert query.shape == (2, 4, 299, 8)
    assert mask.shape == (2, 299)
    assert mask.dtype == torch.bool
    assert others == {"scale": 0.5, "bias": None}


def test_what_depends_on_a_length_is_longer_by_as_much(sizes):
    mode, (B, T, _) = sizes
    call = ((torch.ones(2, 11), torch.ones(2, 12), torch.ones(22, 5)), {})
    recorded = ((like(mode, B, T), like(mode, B, T + 1), like(mode, 2 * T, 5)), {})
    assert [each.shape for each in longer_operands(call, recorded)[0]] == [(2, 299), (2, 300), (598, 5)]


def test_what_is_long_enough_or_has_no_length_stays(sizes):
    mode, (B, T, W) = sizes
    for call, recorded in (
        (((torch.ones(2, 400),), {}), ((like(mode, B, T),), {})),
        (((torch.ones(2, 17, 8),), {}), ((like(mode, B, 17, 8),), {})),
        (((torch.ones(2, 3, 8),), {}), ((like(mode, B, W // 2, 8),), {})),  # patches of an image's width
        # Of how many patches and tokens there are together nobody knows.
        (((torch.ones(2, 11), torch.ones(2, 8)), {}), ((like(mode, B, T), like(mode, B, (T + W) // 2)), {})),
    ):
        assert longer_operands(call, recorded) is call
