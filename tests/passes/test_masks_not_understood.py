"""Masks that are not understood: they stay as they are, with the reason."""

import re

import pytest
import torch
from mask_spellings import offsets
from torch import nn

from remixer import SoftmaxConfig
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.testing import assert_close

REFUSED = {
    "a mask given as it is": (lambda T, keep, m: keep, "is not known|depends on the values of input"),
    "padding of queries too, which see themselves": (
        lambda T, keep, m: keep[:, None, None, :] & keep[:, None, :, None] | torch.eye(T, dtype=torch.bool),
        "no causal, window and padding explain the mask",
    ),
    "every other key": (
        lambda T, keep, m: (offsets(T) % 2 == 0) & keep[:, None, None, :],
        "no causal, window and padding explain the mask",
    ),
    "a window too long to try": (
        lambda T, keep, m: offsets(T).abs() < 20000,
        "holds the constant 20000, too long a window to be tried",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_masks_that_are_not_understood_stay_as_they_are(name, one_attention, recognised, padded):
    mask, reason = REFUSED[name]
    model, inputs = one_attention(mask), padded()
    if name == "a mask given as it is":
        inputs["keep"] = torch.rand(2, 1, 9, 9) > 0.3
        inputs["keep"][..., 0] = True
    result, (site,) = recognised(model, inputs)
    assert site.spec.bias == "dense"
    assert not site.spec.causal
    assert site.spec.window == (None, None)
    assert not site.spec.padding
    assert re.search(reason, site.record.note), site.record.note
    assert site.record.note in [miss.reason for miss in result.misses]
    assert site.record.error is not None  # proven as it stands
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))


def test_a_mask_that_depends_on_the_data(one_attention, recognised, padded):
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = one_attention(lambda T, mask, m: mask)

        def forward(self, x, keep):
            chosen = (x @ x.transpose(1, 2))[:, None] > 0
            return self.inner(x, chosen | torch.eye(x.shape[1], dtype=torch.bool))

    _, (site,) = recognised(Sparse(), padded())
    assert site.spec.bias == "dense"
    assert "depends on the values of input 'x'" in site.record.note
