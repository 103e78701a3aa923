"""Splitting values into causal, window, padding and bias; see test_classify_masks for masks of models."""

import pytest
import torch

from remixer.passes.mask_fit import MaskForm, NoFitError, fit
from remixer.passes.mask_trials import Trial


def offsets(T):
    return torch.arange(T) - torch.arange(T)[:, None]


def trial(mask, existing=None):
    return Trial(mask.reshape(*[1] * (4 - mask.dim()), *mask.shape), existing, *mask.shape[-2:])


def additive(seen, number=-torch.inf):
    return torch.where(seen, 0.0, number)


def test_a_causal_mask():
    form = fit([trial(offsets(T) <= 0) for T in (5, 9)], aligned=True)
    assert form == MaskForm(right=0)
    assert form.causal


def test_no_mask_at_all():
    assert fit([trial(torch.zeros(4, 4)), Trial(torch.ones(1, 1, 1, 9).bool(), None, 9, 9)], aligned=True) == MaskForm()


def test_queries_and_keys_that_are_not_aligned_have_no_band():
    with pytest.raises(NoFitError, match="of 5 queries, query 0 of row 0 may not see key 1"):
        fit([trial(offsets(5) <= 0)], aligned=False)


def test_a_band_that_only_some_lengths_have():
    with pytest.raises(NoFitError, match="no causal, window and padding explain the mask"):
        fit([trial(offsets(5).abs() < 2), trial(offsets(9).abs() < 3)], aligned=True)


def test_heads_with_windows_of_their_own():
    per_head = torch.stack([offsets(9).abs() < 2, offsets(9).abs() < 3])[None]
    with pytest.raises(NoFitError):
        fit([Trial(per_head, None, 9, 9)], aligned=True)


def test_a_mask_that_hides_everything():
    with pytest.raises(NoFitError, match="no query sees any key"):
        fit([trial(torch.zeros(4, 4, dtype=torch.bool))], aligned=True)


def test_biases():
    near = (-offsets(9).abs()).float()
    assert fit([trial(near)], aligned=True).bias == "offset"
    assert fit([trial(near + additive(offsets(9) <= 0))], aligned=True).bias == "offset"
    assert fit([trial(torch.randn(9, 9))], aligned=True).bias == "dense"
    assert fit([trial(near), trial(near * 2)], aligned=True).bias == "dense"  # differs from trial to trial
    assert fit([trial(near[:5, :5]), trial(near)], aligned=True).bias == "offset"
    assert fit([trial(torch.randn(5, 9))], aligned=False).bias == "dense"


def test_a_bias_by_offset_has_to_hold_in_every_row_of_the_batch():
    near = (-offsets(9).abs()).float()
    rows = torch.stack([near, near * 2])[:, None]
    assert fit([Trial(rows, None, 9, 9)], aligned=True).bias == "dense"
    heads = torch.stack([near, near * 2])[None]
    assert fit([Trial(heads, None, 9, 9)], aligned=True).bias == "offset"


@pytest.mark.parametrize(("number", "dtype", "expected"), [
    (-torch.inf, torch.float32, "zero"),
    (torch.finfo(torch.float32).min, torch.float32, "mean"),
    (-1e9, torch.float32, "mean"),
    (-1e4, torch.float32, "all"),
    (-1e4, torch.bfloat16, "mean"),
    (torch.finfo(torch.float16).min, torch.float16, "mean"),
])  # fmt: skip
def test_dead_rows(number, dtype, expected):
    mask = additive(offsets(9) <= 0, number).to(dtype)
    assert fit([trial(mask)], aligned=True).dead_rows == expected
    assert fit([trial(offsets(9) <= 0)], aligned=True).dead_rows == "zero"
