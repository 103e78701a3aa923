"""What a program is exported by."""

import pytest
import torch
from torch import nn

import remixer
from remixer.export import examples
from remixer.export.examples import example_for_export, trials, uneven
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


class Wide(nn.Module):
    """Attention, and 1,000 numbers for each token; beside them one for each row, one in all, and how many there are."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 1000)

    def forward(self, hidden):
        query = hidden[:, None]
        given = self.head(nn.functional.scaled_dot_product_attention(query, query, query)[:, 0])
        return given, given.mean((1, 2)), given.mean(), hidden.shape[1]


def test_fewer_rows_where_outputs_are_large(monkeypatch):
    program = Program.of(remixer.capture(Wide(), (torch.randn(2, 9, 8),)).graph_module)

    def shapes():
        return [tuple(trial.call[0][0].shape[:2]) for trial in trials(program)]

    whole = [(1, 1), (3, 2), (2, 37), (1, 129), (3, 250), (2, 513), (1, 9)]
    assert shapes() == whole
    monkeypatch.setattr(examples, "OUTPUTS", (2 * 250 * 1000 + 2 + 1) * 4)
    assert shapes() == [*whole[:4], (2, 250), (1, 513), (1, 9)]
    monkeypatch.setattr(examples, "OUTPUTS", 0)
    assert {rows for rows, _ in shapes()} == {1}
