"""How programs with sites grow, measured against what their sites see."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from remixer import SoftmaxConfig
from remixer.passes.pipelines import recognition, replacement
from remixer.passes.prove_growth import ProveGrowth, growth, length_symbols
from remixer.passes.select import Selection
from remixer.rewrite.capture import capture
from remixer.rewrite.errors import PassError
from remixer.rewrite.growth import Order


def test_a_program_that_grows_too_fast_is_refused(one_attention, recognised):
    result, _ = recognised(one_attention())
    program = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program).program
    with pytest.raises(PassError, match=r"the graph grows as n\^2, at most n log n was asked for: `mixer` of shape \("):
        ProveGrowth()(program)
    assert not ProveGrowth("n^2")(program).modified


def test_a_program_without_attention_grows_with_its_inputs():
    program = capture(nn.Linear(4, 4), (torch.randn(2, 5, 4),))
    assert length_symbols(program) == program.length
    assert growth(program).order == Order(1)


def test_an_order_that_is_none():
    with pytest.raises(ValueError, match="no order of growth 'fast'"):
        ProveGrowth("fast")(capture(nn.Linear(4, 4), (torch.randn(2, 5, 4),)))


def test_images_are_measured_in_tokens():
    """The side of an image is the symbol; tokens are its square."""

    class Patches(nn.Module):
        def forward(self, image):
            tokens = image.flatten(2).transpose(1, 2)[:, None]
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    program = recognition()(capture(Patches(), (torch.randn(2, 8, 6, 6),))).program
    assert growth(program).order == Order(2)


def test_the_sequence_may_be_the_first_dimension():
    layer = nn.TransformerEncoderLayer(32, 4, 64).eval()
    program = recognition()(capture(layer, (torch.randn(7, 2, 32),))).program
    assert length_symbols(program) == program.batch
    assert growth(program).order == Order(2)
