"""Documents packed into one row, and what looks like them."""

import pytest
import torch
from mask_spellings import LOWEST, additive, causal, check

from remixer import SoftmaxConfig
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.testing import assert_close


def by_segment(T, ids, model):
    return (ids[:, :, None] == ids[:, None, :])[:, None]


def by_restart(T, ids, model):
    document = (ids.diff(dim=1, prepend=ids[:, :1] - 1) != 1).cumsum(1)
    return (document[:, :, None] == document[:, None, :])[:, None]


PACKED = {
    "segments": by_segment,
    "segments, 0 is padding": lambda T, ids, m: by_segment(T, ids, m) & (ids != 0)[:, None, None, :],
    "segments, as a number": lambda T, ids, m: additive(~by_segment(T, ids, m), -1e9),
    "causal segments": lambda T, ids, m: by_segment(T, ids, m) & causal(T, ids, m),
    "positions that start again": by_restart,
    "positions that start again, causal": lambda T, ids, m: by_restart(T, ids, m) & causal(T, ids, m),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_documents_are_kept_apart(name, one_attention, recognised):
    """0 and 1, as padding has them, would look like padding of keys and queries."""
    model = one_attention(PACKED[name])
    ids = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 3]] * 2)
    if "positions" in name:
        ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1]] * 2)
    inputs = {"x": torch.randn(2, 9, 16), "keep": ids}
    result, (site,) = recognised(model, inputs)
    assert site.spec.bias == "dense"
    assert site.record.note == (
        "its mask depends on the values of input 'keep', which tell apart the documents that are packed into one row"
    )
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))


def test_positions_that_are_counted_out_are_no_documents(one_attention, recognised, padded):
    """As decoders without a mask do it: they look for documents in positions that are always 0, 1, 2, ..."""

    def mask(T, keep, model):
        return by_restart(T, torch.arange(T)[None].expand(keep.shape[0], -1), model) & causal(T, keep, model)

    model, inputs = one_attention(mask), padded()
    result, sites = recognised(model)
    check(result, sites, model, inputs, causal=True, padding=False)


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_numbers_that_say_what_exists_are_no_documents(dtype, one_attention, recognised, padded):
    for mask in (
        lambda T, keep, m: (keep != 0)[:, None, None, :] & (keep != 0)[:, None, :, None],
        lambda T, keep, m: (keep == 1)[:, None, None, :] & (keep == 1)[:, None, :, None],
        lambda T, keep, m: (1.0 - keep[:, None, None, :].float()) * LOWEST,
    ):
        _, (site,) = recognised(one_attention(mask), padded(dtype))
        assert site.record.note == ""
        assert site.spec.padding
