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


def test_queries_and_keys_that_are_not_aligned_have_one_band_at_all_lengths():
    with pytest.raises(NoFitError, match="of 5 queries, query 0 of row 0 may see key 1"):
        fit(
            [trial(torch.arange(7) <= torch.arange(5)[:, None] * 2 + 1), trial(torch.ones(3, 9).tril() > 0)],
            aligned=False,
        )


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


def test_whether_there_is_a_bias():
    near = (-offsets(9).abs()).float()
    assert fit([trial(near)], aligned=True).biased
    assert fit([trial(near + additive(offsets(9) <= 0))], aligned=True) == MaskForm(right=0, biased=True)
    assert fit([trial(torch.randn(5, 9))], aligned=False).biased
    assert not fit([trial(additive(offsets(9) <= 0, -1e4))], aligned=True).biased


@pytest.mark.parametrize(("alignment", "shift"), [("start", 0), ("end", 4)])
def test_fewer_queries_than_keys(alignment, shift):
    def at(T, S):
        offset = torch.arange(S) - torch.arange(T)[:, None] - (shift and S - T)
        return trial((offset <= 0) & (offset >= -2))

    form = fit([at(5, 9), at(7, 12)], aligned=False)
    assert form == MaskForm(left=2, right=0, alignment=alignment)
    assert str(fit([at(3, 3)], aligned=True).alignment) == "start"
    with pytest.raises(NoFitError):  # one length can't tell a fixed shift from an alignment, two can
        fit([at(5, 9), trial(torch.arange(12) - torch.arange(7)[:, None] - 1 <= 0)], aligned=False)


def test_padding_of_queries_too():
    exist = torch.tensor([[True, True, False, True, False]])
    both = exist[:, None, None] & exist[:, None, :, None]
    whole = Trial(torch.ones(1, 1, 5, 5).bool(), torch.ones(1, 5).bool(), 5, 5)
    assert fit([whole, Trial(both, exist, 5, 5)], aligned=True) == MaskForm(padding=True, pads_queries=True)
    keys = fit([whole, Trial(exist[:, None, None].expand(1, 1, 5, 5), exist, 5, 5)], aligned=True)
    assert keys == MaskForm(padding=True)
    for wrong in (both | torch.eye(5, dtype=torch.bool), exist[:, None, :, None].expand(1, 1, 5, 5)):
        with pytest.raises(NoFitError):
            fit([whole, Trial(wrong, exist, 5, 5)], aligned=True)


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


def test_dead_rows_of_two_masks_in_a_sum():
    lowest, exist = torch.finfo(torch.float32).min, torch.arange(9) >= torch.tensor([[3]])
    band, keys = additive(offsets(9) <= 0, lowest), additive(exist, lowest)[:, None, None]
    whole = Trial(band[None, None], torch.ones(1, 9).bool(), 9, 9)
    form = fit([whole, Trial(band + keys, exist, 9, 9)], aligned=True)
    assert form == MaskForm(right=0, padding=True, dead_rows="once")
    twice = Trial(torch.where(offsets(9) <= 0, keys, -torch.inf), exist, 9, 9)
    assert fit([Trial(band[None, None] * 2, torch.ones(1, 9).bool(), 9, 9), twice], aligned=True).dead_rows == "past"
    elsewhere = (band + keys).clone()
    elsewhere[0, 0, 0, 8] = -torch.inf  # hidden by its place only
    assert fit([whole, Trial(elsewhere, exist, 9, 9)], aligned=True).dead_rows == "zero"
    assert fit([whole, Trial(torch.minimum(band, keys), exist, 9, 9)], aligned=True).dead_rows == "mean"


def test_dead_rows_in_which_some_keys_are_hidden_less_than_others():
    """Softmax gives a query that sees no key those that -1e4 hides, where the lowest number hides the others."""
    exist = torch.arange(9) >= torch.tensor([[3]])
    band, keys = additive(offsets(9) <= 0, -1e4), additive(exist, torch.finfo(torch.float32).min)[:, None, None]
    whole = Trial(band[None, None], torch.ones(1, 9).bool(), 9, 9)
    told = "query 0 of row 0 may see no key, but some are hidden by -3.4e.38 and others by -1e.04: it sees the others"
    with pytest.raises(NoFitError, match=told):
        fit([whole, Trial(band + keys, exist, 9, 9)], aligned=True)


def test_dead_rows_of_two_masks_of_which_one_hides_more():
    lowest, exist = torch.finfo(torch.float32).min, torch.arange(9) >= torch.tensor([[3]])
    band, keys = additive(offsets(9) <= 0, -1e30), additive(exist, lowest)[:, None, None]
    trials = [Trial(band[None, None], torch.ones(1, 9).bool(), 9, 9), Trial(band + keys, exist, 9, 9)]
    assert fit(trials, aligned=True) == MaskForm(right=0, padding=True, dead_rows="existing")
    assert fit([trial(keys)], aligned=False).dead_rows == "mean"
