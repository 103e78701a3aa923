"""Errors and what is allowed."""

import math

import pytest
import torch

from remixer.rewrite.tolerance import TOLERANCE, error_and_limit


def test_the_limit_grows_with_the_values():
    error, limit = error_and_limit(torch.tensor([100.0, 1.0]), torch.tensor([100.0, 1.5]))
    assert error == 0.5
    assert limit == pytest.approx(100 * TOLERANCE[torch.float32])
    assert error_and_limit(torch.zeros(2), torch.zeros(2)) == (0.0, TOLERANCE[torch.float32])


def test_the_lower_precision_counts():
    half, single = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    assert error_and_limit(half, single)[1] == error_and_limit(single, half)[1] == TOLERANCE[torch.bfloat16]


def test_nan_is_never_within_the_limit():
    for pair in ((torch.nan, 1.0), (1.0, torch.nan)):
        error, limit = error_and_limit(*(torch.tensor([value]) for value in pair))
        assert math.isnan(error)
        assert not error <= limit


def test_nothing_to_compare():
    assert error_and_limit(torch.zeros(0, 3), torch.zeros(0, 3)) == (0.0, 0.0)
