"""What a program is exported by."""

import pytest
import torch
from torch import nn

import remixer
from remixer.export.examples import example_for_export, uneven
from remixer.rewrite.program import Program


class Placed(nn.Module):
    """Attention over so many places at most, which its graph does not say."""

    def __init__(self, places, fixed=False):
        super().__init__()
        self.places, self.fixed = nn.Embedding(places, 8), fixed

    def forward(self, hidden):
        T = hidden.shape[1]
        if self.fixed:
            assert self.places.num_embeddings == T
        hidden = hidden + self.places(torch.arange(T))
        query = hidden[:, None]
        return nn.functional.scaled_dot_product_attention(query, query, query)[:, 0]


def length_for(model, captured, wanted):
    program = Program.of(remixer.capture(model, (torch.randn(2, captured, 8),)).graph_module)
    return example_for_export(program, wanted)[0][0].shape[1]


@pytest.mark.parametrize(
    ("places", "captured", "wanted", "expected"),
    [
        pytest.param(512, 20, 300, 299, id="as wanted, but odd"),
        pytest.param(512, 20, 37, 37, id="odd already"),
        pytest.param(64, 20, 300, 19, id="too many for the model: about as captured"),
        pytest.param(64, 64, 300, 63, id="captured with the most"),
        pytest.param(64, 2, 300, 2, id="one token is no length"),
    ],
)
def test_an_odd_number_of_tokens(places, captured, wanted, expected):
    assert length_for(Placed(places), captured, wanted) == expected


def test_the_captured_number_where_it_is_the_only_one():
    assert length_for(Placed(16, fixed=True), 16, 300) == 16


def test_uneven():
    assert [uneven(tokens) for tokens in (1, 2, 3, 4, 64, 65)] == [1, 2, 3, 3, 63, 65]
    assert uneven(64, least=64) == 64
