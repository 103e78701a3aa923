"""Biases by offset: read from a mask as something that costs O(n)."""

import pytest
import torch
from bias_forms import FORMS, bucket, inputs_of, looked_up, model_of, offsets, padded
from torch import nn

from remixer import LongShort, SoftmaxConfig
from remixer.mixers.offset_bias import LinearBias, TableBias
from remixer.passes.base import Pipeline
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.classify_masks import ClassifyMasks
from remixer.passes.pipelines import replacement
from remixer.passes.prove_growth import growth
from remixer.passes.prove_sites import ProveSites
from remixer.passes.recognise_attention import RecogniseAttention
from remixer.passes.select import Selection
from remixer.passes.sites import sites_of
from remixer.rewrite.capture import capture
from remixer.testing import assert_close


@pytest.mark.parametrize("name", FORMS)
def test_read_by_offset_with_nothing_dense_left(name, one_attention, recognised):
    model, expected = model_of(one_attention, name)
    result, (site,) = recognised(model, inputs_of(model, 2, 9))
    assert [str(miss) for miss in result.misses] == []
    assert site.record.note == ""
    assert site.spec.bias == "offset"
    for key, value in expected.items():
        assert getattr(site.spec, key) == value, (key, site.spec)
    module = result.program.graph_module.get_submodule(str(site.operand("bias").target))
    assert isinstance(module, TableBias if model.__dict__["_modules"].get("table") else LinearBias)
    if isinstance(module, TableBias):
        nn.init.normal_(model.table.weight)
    exact = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program).program
    window = replacement(Selection.of({"*": LongShort(window=200, rank=0)}))(result.program).program
    assert str(growth(window).order) == "n"
    for B, T, kind in ((1, 1, "right"), (2, 6, "left"), (2, 41, "holes"), (1, 90, "right")):
        inputs = inputs_of(model, B, T, kind)
        original = model(**inputs)
        assert_close(exact.graph_module(**inputs), original)
        # Padded queries before all keys may see nothing: softmax makes something of that, the window makes 0.
        alive = inputs["keep"] if site.spec.padding else torch.ones(B, T, dtype=torch.bool)
        assert_close(window.graph_module(**inputs), original, where=alive)


def test_the_table_stays_where_it_was_and_trains(one_attention, recognised):
    model, _ = model_of(one_attention, "buckets")
    nn.init.normal_(model.table.weight)
    inputs = inputs_of(model, 2, 9)
    result, _ = recognised(model, inputs)
    small = replacement(Selection.of({"*": LongShort(window=64, rank=0)}))(result.program).graph_module
    assert {"table.weight", "query.weight"} <= {name for name, _ in small.named_parameters()}
    other = inputs_of(model, 2, 33)
    for each in (model, small):
        each.zero_grad()
        (each(**other) * other["keep"][..., None]).square().sum().backward()
        model_gradient = model.table.weight.grad if each is model else model_gradient  # noqa: F821
    model.table.weight.grad = None
    small.zero_grad()
    (small(**other) * other["keep"][..., None]).square().sum().backward()
    assert_close(small.get_parameter("table.weight").grad, model_gradient)


def test_layers_share_one_sequence(one_attention, recognised):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            given = lambda T, mask, m: mask  # noqa: E731
            self.layers = nn.ModuleList(one_attention(given, heads=4, width=32) for _ in range(3))
            self.table, self.mask = nn.Embedding(32, 4), True

        def forward(self, x, keep):
            mask = looked_up(bucket(offsets(x.shape[1])), self) + padded(keep)
            for layer in self.layers:
                x = layer(x, mask)
            return x

    model = Shared()
    inputs = {"x": torch.randn(2, 9, 32), "keep": torch.arange(9)[None] < torch.tensor([[9], [6]])}
    result, sites = recognised(model, inputs)
    assert len({site.operand("bias") for site in sites}) == 1
    small = replacement(Selection.of({"layers.1": None, "*": LongShort(window=64, rank=0)}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))
    assert [site.name for site in sites_of(small.program)] == ["layers.0", "layers.2"]


def changed(module):
    """Sequences that a misreading might have given."""
    if isinstance(module, LinearBias):
        yield "steeper", LinearBias(module.before * 1.001, module.after)
        yield "heads exchanged", LinearBias(module.before.flip(0), module.after.flip(0))
    else:
        yield "a place off", TableBias(module.places, module.first + 1, module.factor)
        yield "mirrored", TableBias(module.places.flip(1), module.first, module.factor)
        yield "cut short", TableBias(module.places[:, 12:], module.first + 12, module.factor)
        yield "factor", TableBias(module.places, module.first, module.factor * 1.01)


@pytest.mark.parametrize("name", ["buckets", "slopes of 6 heads"])
def test_a_misread_bias_is_not_proven(name, one_attention):
    model, _ = model_of(one_attention, name)
    program = capture(model.eval(), inputs_of(model, 2, 9))
    read = Pipeline((Canonicalise(), RecogniseAttention(), ClassifyMasks()))(program).program
    (site,) = sites_of(read)
    path = str(site.operand("bias").target)
    right = read.graph_module.get_submodule(path)
    for what, wrong in changed(right):
        read.graph_module.set_submodule(path, wrong)
        result = ProveSites()(read)
        assert "differs from what it was read from" in result.misses[0].reason, what
    read.graph_module.set_submodule(path, right)
    assert ProveSites()(read).misses == ()


def test_half_precision(one_attention, recognised):
    for name in ("buckets", "slopes"):
        model, _ = model_of(one_attention, name)
        mask = model.mask
        model.mask = lambda T, keep, m, mask=mask: mask(T, keep, m).clamp(min=-1e30).to(torch.bfloat16)
        model = model.to(torch.bfloat16)
        inputs = inputs_of(model, 2, 9)
        inputs["x"] = inputs["x"].bfloat16()
        result, (site,) = recognised(model, inputs)
        assert site.spec.bias == "offset", site.record.note
        small = replacement(Selection.of({"*": LongShort(window=64, rank=0)}))(result.program).graph_module
        with torch.no_grad():
            out, original = small(**inputs), model(**inputs)
        assert out.dtype == torch.bfloat16
        assert float((out - original)[inputs["keep"]].abs().max()) < 0.05
