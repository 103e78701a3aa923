"""How far two values are from each other."""

import math

import pytest
import torch

from remixer.export.examples import Trial
from remixer.export.onnx.verify import difference, largest_difference


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
    assert difference(got, want, Trial(((), {}), exist, "")) == 0
    assert math.isnan(difference(got, want, Trial(((), {}), None, "")))
    assert difference(got[:, :2, 0], want[:, :2, 0], Trial(((), {}), exist, "")) != 0  # another number of tokens
    got[1, 1, 2] = 2
    assert difference(got, want, Trial(((), {}), exist, "")) == 1
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    assert difference(got, want, Trial(((), {}), nobody, "")) == 0
