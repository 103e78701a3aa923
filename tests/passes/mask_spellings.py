"""Masks as models make them, and how what they are read as is checked."""

import torch

from remixer import SoftmaxConfig
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.testing import assert_close

LOWEST = torch.finfo(torch.float32).min


def offsets(T):
    return torch.arange(T) - torch.arange(T)[:, None]  # s - t


def causal(T, keep, model):
    return torch.ones(T, T, dtype=torch.bool).tril()


def additive(hidden, number):
    return torch.zeros(hidden.shape).masked_fill(hidden, number)


def check(result, sites, model, inputs, **expected):
    assert [str(miss) for miss in result.misses] == []
    (site,) = sites
    assert site.record.note == ""
    for name, value in {"bias": "none", **expected}.items():
        assert getattr(site.spec, name) == value, (name, site.spec)
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))
