"""What a mask gives to queries that see no key."""

import pytest
import torch
from mask_spellings import LOWEST, additive, causal, check, offsets

from remixer import SoftmaxConfig
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.testing import assert_close


@pytest.mark.parametrize(("dtype", "number", "dead"), [
    (torch.float32, -torch.inf, "zero"),
    (torch.float32, LOWEST, "mean"),
    (torch.float32, -1e9, "mean"),
    (torch.float32, -1e4, "all"),
])  # fmt: skip
def test_what_a_row_gives_that_sees_nothing(dtype, number, dead, one_attention, recognised):
    model = one_attention(lambda T, keep, m: additive(~(causal(T, keep, m) & keep[:, None, None]), number))
    result, (site,) = recognised(model)
    assert site.spec.dead_rows == dead
    left = {"x": torch.randn(2, 7, 16), "keep": torch.ones(2, 7, dtype=torch.bool)}
    left["keep"][0, :3] = False
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**left), model(**left))


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dead_rows", ["once", "past"])
def test_two_masks_of_the_lowest_number_in_a_sum(dead_rows, window, one_attention, recognised, padded):
    def mask(T, keep, model):
        exist, past = keep[:, None, None], causal(T, keep, model)
        band = past if window is None else past & (offsets(T) >= -window)
        return additive(~(exist if dead_rows == "once" else exist & past), LOWEST) + additive(~band, LOWEST)

    model = one_attention(mask)
    result, sites = recognised(model)
    check(result, sites, model, padded(), causal=True, padding=True, window=(window, 0), dead_rows=dead_rows)
    left = {"x": torch.randn(3, 7, 16), "keep": torch.ones(3, 7, dtype=torch.bool)}
    left["keep"][0, :3] = False
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**left), model(**left))


def test_what_padded_queries_give_follows_the_number_that_hides(one_attention, recognised, padded):
    def mask(T, keep, model):
        both = keep[:, None, None, :] & keep[:, None, :, None]
        return additive(~both, LOWEST)

    model, inputs = one_attention(mask), padded()
    result, sites = recognised(model)
    check(result, sites, model, inputs, padding=True, pads_queries=True, dead_rows="mean")
    assert "padding of keys and queries" in str(sites[0].spec)
