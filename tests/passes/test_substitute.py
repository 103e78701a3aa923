"""Mixers in the place of attentions; what nobody chose goes back to what it was."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from remixer import MixerConfig, SoftmaxConfig
from remixer.mixers import Mixer, Softmax, Unsupported, registry
from remixer.passes.errors import UnsupportedAttentionError
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.passes.sites import sites_of
from remixer.passes.substitute import Substitute
from remixer.testing import assert_close, graph_text


@dataclass(frozen=True)
class AverageConfig(MixerConfig):
    name: ClassVar[str] = "average"
    refuse: bool = False


class Average(Mixer):
    """Every token gets the mean value, times a learned number; reads the hidden state for the test's sake."""

    Config = AverageConfig
    operands = ("value", "source")
    order = "n"

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.gain = nn.Parameter(torch.ones(()))

    @classmethod
    def supports(cls, spec, config):
        return Unsupported("'average' was told to refuse") if config.refuse else None

    def forward(self, query=None, key=None, value=None, *, padding=None, bias=None, source=None):
        assert query is key is padding is bias is None
        assert source.shape[:2] == (value.shape[0], value.shape[2])
        return value.mean(2, keepdim=True).expand(value.shape) * self.gain

    reference = forward


@pytest.fixture(autouse=True)
def average(monkeypatch):
    monkeypatch.setitem(registry._MIXERS if hasattr(registry, "_MIXERS") else registry._registered, "average", Average)


def test_only_the_named_operands_are_wired_and_the_rest_is_swept(one_attention, recognised):
    result, _ = recognised(one_attention())
    small = replacement(Selection.of({"*": AverageConfig()}))(result.program)
    (site,) = sites_of(small.program)
    assert set(site.node.kwargs) == {"value", "source"}
    assert site.operand("source").op == "placeholder"
    assert sorted(small.graph_module.state_dict()) == ["mixer.gain", "value.bias", "value.weight"]
    assert small.graph_module(torch.randn(3, 4, 16)).shape == (3, 4, 16)
    assert [rewrite.rule for rewrite in small.rewrites] == ["Substitute average"]


def test_what_nobody_chose_is_what_it_was(one_attention, recognised):
    model = one_attention()
    result, _ = recognised(model)
    kept = replacement(Selection.of({"*": None}))(result.program)
    assert sites_of(kept.program) == []
    assert not any(isinstance(module, Softmax) for module in kept.graph_module.modules())
    x = torch.randn(3, 4, 16)
    assert torch.equal(kept.graph_module(x), model(x))
    assert "scaled_dot_product_attention" in graph_text(kept.program.graph)


def test_one_of_two(one_attention, recognised):
    model = nn.Sequential(one_attention(), one_attention())
    result, sites = recognised(model)
    assert [site.name for site in sites] == ["0", "1"]
    small = replacement(Selection.of({"1": AverageConfig(), "*": None}))(result.program)
    assert [(site.name, site.mixer.config.name) for site in sites_of(small.program)] == [("1", "average")]
    assert "scaled_dot_product_attention" in graph_text(small.program.graph)


def test_a_mixer_that_refuses(one_attention, recognised):
    model = one_attention()
    result, _ = recognised(model)
    selection = Selection.of({"*": AverageConfig(refuse=True)})
    kept = replacement(selection)(result.program)
    (miss,) = kept.misses
    assert (miss.reason, miss.rule, miss.site) == ("'average' was told to refuse", "Substitute", "attention")
    x = torch.randn(3, 4, 16)
    assert torch.equal(kept.graph_module(x), model(x))
    with pytest.raises(
        UnsupportedAttentionError,
        match=r"cannot replace attention at attention: 'average' was told to refuse\. Leave it out with "
        r'\{"attention": None\}',
    ):
        Substitute(selection, strict=True)(result.program)


def test_mixers_take_the_dtype_of_the_values(one_attention, recognised):
    model = one_attention().to(torch.float64)
    result, _ = recognised(model, (torch.randn(2, 9, 16, dtype=torch.float64),))
    small = replacement(Selection.of({"*": AverageConfig()}))(result.program)
    assert small.graph_module.mixer.gain.dtype == torch.float64


def test_softmax_on_every_site_changes_nothing(one_attention, recognised, padded):
    model = one_attention(lambda T, keep, m: keep[:, None, None, :])
    result, _ = recognised(model)
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    for B, T in ((1, 1), (2, 6), (3, 31)):
        keep = torch.ones(B, T, dtype=torch.bool)
        keep[0, : T // 2] = False
        x = torch.randn(B, T, 16)
        assert_close(small.graph_module(x=x, keep=keep), model(x, keep))
