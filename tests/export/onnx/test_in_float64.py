"""Graphs in float64."""

import copy

import pytest
import torch
from torch import nn

import remixer
from remixer.export.onnx.in_float64 import outputs_in_float64
from remixer.rewrite.agreement import NotRunError


class Normed(nn.Module):
    """Attention, and a norm that is computed in one precision whatever comes in."""

    def __init__(self):
        super().__init__()
        self.attention, self.weight = nn.MultiheadAttention(16, 2, batch_first=True), nn.Parameter(torch.rand(16))
        self.dtype = torch.float32

    def forward(self, x):
        hidden = (x + self.attention(x, x, x, need_weights=False)[0]).to(self.dtype)
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Normed().eval()


@pytest.fixture(scope="module")
def rewritten(model):
    return remixer.remix(model, "softmax", torch.randn(2, 9, 16))


def test_nothing_in_between_is_rounded_to_float32(model, rewritten):
    torch.manual_seed(1)
    x, before = torch.randn(3, 17, 16), copy.deepcopy(rewritten.state_dict())
    (exact,) = outputs_in_float64(rewritten, ((x,), {}))
    wide = copy.deepcopy(model).double()
    wide.dtype = torch.float64
    with torch.no_grad():
        torch.testing.assert_close(exact, wide(x.double()), rtol=0, atol=1e-13)
        assert float((rewritten(x) - exact).abs().max()) > 1e-8
    assert all(torch.equal(each, before[name]) for name, each in rewritten.state_dict().items())
    assert {each.dtype for each in rewritten.state_dict().values()} == {torch.float32}


def test_what_does_not_run(rewritten):
    with pytest.raises(NotRunError):
        outputs_in_float64(rewritten, ((torch.randn(3, 17, 15),), {}))
