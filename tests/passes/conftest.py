"""One attention in many spellings, as small as it can be."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from remixer.passes.pipelines import recognition
from remixer.passes.sites import sites_of
from remixer.rewrite.capture import capture

sys.path.insert(0, str(Path(__file__).parent))  # for what test files share


class OneAttention(nn.Module):
    """Two heads of 8 with projections; `mask(T, keep, self)` makes what `mix(q, k, v, mask)` is given."""

    def __init__(self, mask=None, mix=None, heads=2, kv_heads=None, width=16):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads or heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, self.kv_heads * self.size)
        self.value = nn.Linear(width, self.kv_heads * self.size)
        self.mask, self.mix = mask, mix

    def forward(self, x, keep=None):
        query = self.query(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        key = self.key(x).unflatten(-1, (self.kv_heads, self.size)).transpose(1, 2)
        value = self.value(x).unflatten(-1, (self.kv_heads, self.size)).transpose(1, 2)
        mask = None if self.mask is None else self.mask(x.shape[1], keep, self)
        if self.mix is not None:
            mixed = self.mix(query, key, value, mask, self)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


def padded_inputs(dtype=torch.bool):
    keep = torch.ones(2, 9, dtype=dtype)
    keep[1, 6:] = 0
    return {"x": torch.randn(2, 9, 16), "keep": keep}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def one_attention():
    return OneAttention


@pytest.fixture
def recognised():
    """Capture and recognise; gives the pipeline's result and its sites."""

    def recognise(model, inputs=None):
        if inputs is None:
            inputs = padded_inputs() if getattr(model, "mask", None) is not None else (torch.randn(2, 9, 16),)
        result = recognition()(capture(model.eval(), inputs))
        return result, sites_of(result.program)

    return recognise


@pytest.fixture
def padded():
    return padded_inputs
