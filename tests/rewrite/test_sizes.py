"""Sizes in letters."""

import pytest
import sympy
import torch
from torch import nn
from torch.utils._sympy.functions import FloorDiv

from remixer.rewrite.capture import capture
from remixer.rewrite.sizes import in_letters, letters_of, written, written_shape


class Two(nn.Module):
    def forward(self, x, y):
        return x[:, ::4].sum(1) + y.sum(1), x[:, : x.shape[1] // 2]


@pytest.fixture(scope="module")
def program():
    return capture(Two(), (torch.randn(3, 12), torch.randn(3, 7)))


def test_rows_are_b_and_lengths_come_in_the_order_of_the_inputs(program):
    letters = letters_of(program)
    assert sorted(letters.values()) == ["B", "S", "T"]
    first, second = (node.meta["val"].shape for node in program.graph.find_nodes(op="placeholder"))
    assert (written_shape(first, letters), written_shape(second, letters)) == ("(B, T)", "(B, S)")


def test_quotients_have_no_brackets_too_many(program):
    half = [node for node in program.graph.nodes if node.op == "call_function" and node.meta["val"] is not None][-1]
    assert written_shape(half.meta["val"].shape, letters_of(program)) == "(B, T//2)"
    T = sympy.Symbol("T", integer=True, positive=True)
    assert written(FloorDiv(FloorDiv(T, 4) - 5, 2) + 1, {}) == "(T//4 - 5)//2 + 1"
    assert written(3 * FloorDiv(T + 1, 4), {}) == "3*((T + 1)//4)"


def test_sentences_name_no_symbol_of_the_export(program):
    letters = letters_of(program)
    length = next(symbol.name for symbol, letter in letters.items() if letter == "T")
    assert in_letters(f"dimension {length} of x{length} is {length}*4", letters) == f"dimension T of x{length} is T*4"
