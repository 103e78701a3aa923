"""How far two values are from each other."""

import math

import pytest
import torch

from remixer.export.onnx import compare
from remixer.export.onnx.compare import largest_difference, set_aside


def test_it_is_relative_to_the_largest_number_that_is_wanted():
    want = torch.tensor([[1.0, -8.0], [2.0, 4.0]])
    assert largest_difference(want, want) == 0
    assert largest_difference(want + 0.5, want) == pytest.approx(0.5 / 8)
    assert largest_difference(torch.tensor(0.25), torch.tensor(0.5)) == 0.25  # of 1 at least


@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_is_never_near(where):
    want = torch.ones(2, 3)
    got = want.clone()
    got[where, 1] = math.nan
    assert math.isnan(largest_difference(got, want))
    assert math.isnan(largest_difference(want, got))
    got[where, 1] = math.inf
    assert largest_difference(got, want) == math.inf


def test_other_shapes_whole_numbers_and_nothing():
    whole = torch.tensor([[1, 2], [3, 4]])
    assert largest_difference(torch.ones(2, 3), torch.ones(3, 2)) == math.inf
    assert largest_difference(whole.int(), whole) == 0
    assert largest_difference(whole + torch.tensor([[0, 0], [0, 1]]), whole) == math.inf
    assert largest_difference(torch.ones(0, 3), torch.ones(0, 3)) == 0


def test_tokens_that_do_not_exist_do_not_count():
    want = torch.ones(2, 3, 4)
    got, exist = want.clone(), torch.tensor([[True, True, True], [False, True, True]])
    got[1, 0] = math.nan
    assert largest_difference(got, want, exist) == 0
    assert math.isnan(largest_difference(got, want))
    assert largest_difference(got[:, :2, 0], want[:, :2, 0], exist) != 0  # another number of tokens
    got[1, 1, 2] = 2
    assert largest_difference(got, want, exist) == 1
    assert largest_difference(got, want, torch.zeros(2, 3, dtype=torch.bool)) == 0


@pytest.mark.parametrize("exist", [None, torch.arange(33).reshape(3, 11) % 4 != 1])
@pytest.mark.parametrize("piece", [1, 10, 40, 2**18])
def test_in_pieces_and_from_files_it_is_the_same(exist, piece, tmp_path, monkeypatch):
    torch.manual_seed(0)
    want, other = torch.randn(3, 11, 5), torch.randn(3, 11, 5)
    there = slice(None) if exist is None else exist
    expected = float((want - other)[there].abs().max() / want[there].abs().max())
    monkeypatch.setattr(compare, "PIECE", piece)
    monkeypatch.setattr(compare, "LARGE", 100)
    aside, scalar, mask = set_aside([want.mT.contiguous().mT, want[0, 0, 0], want.bool()], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(scalar, want[0, 0, 0])
    assert torch.equal(mask, want.bool())
    assert largest_difference(other, aside, exist) == largest_difference(other, want, exist) == pytest.approx(expected)
    assert largest_difference(other[:2], aside, exist) == math.inf
    assert largest_difference(want, aside, exist) == 0
