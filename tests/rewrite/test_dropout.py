"""Dropout as modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from remixer.rewrite.capture import capture
from remixer.rewrite.dropout import Dropout, DropoutProbability, is_random


@pytest.mark.parametrize("kind", ["dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"])
def test_every_kind(kind):
    class Dropped(nn.Module):
        def forward(self, x):
            return getattr(F, kind.replace("feature_dropout", "dropout1d"))(x, 0.5, self.training)

    captured = capture(Dropped(), (torch.randn(2, 8, 9),)).graph_module
    (dropout,) = [module for module in captured.modules() if isinstance(module, Dropout)]
    assert (dropout.p, dropout.kind) == (0.5, kind)
    x = torch.ones(2, 8, 9)
    assert captured(x) is not None
    assert torch.equal(captured(x), x)
    torch.manual_seed(0)
    dropped = captured.train()(x)
    assert not torch.equal(dropped, x)
    if kind == "feature_dropout":
        assert all(len(channel.unique()) == 1 for channel in dropped.flatten(0, 1))


def test_a_dropout_keeps_its_place_in_the_tree():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.2)).eval()
    captured = capture(model, (torch.randn(2, 4),)).graph_module
    assert (captured.get_submodule("1").p, captured.get_submodule("3").p) == (0.1, 0.2)


def test_a_probability_of_zero_leaves_nothing():
    captured = capture(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), (torch.randn(2, 4),)).graph_module
    assert not [module for module in captured.modules() if isinstance(module, Dropout)]


def test_a_probability_follows_the_mode():
    module = DropoutProbability(0.3)
    assert (module.train()(), module.eval()()) == (0.3, 0.0)
    assert repr(module) == "DropoutProbability(p=0.3)"
    assert (repr(Dropout(0.5)), repr(Dropout(0.5, "alpha_dropout"))) == (
        "Dropout(p=0.5)",
        "Dropout(p=0.5, kind='alpha_dropout')",
    )


def test_what_is_random():
    class Noise(nn.Module):
        def forward(self, x):
            q = x[:, None]
            mixed = F.scaled_dot_product_attention(q, q, q)
            return torch.rand_like(x) + mixed[:, 0] + x.cos()

    exported = torch.export.export(Noise(), (torch.randn(2, 3, 4),))
    names = [node.target for node in exported.graph.nodes if is_random(node)]
    assert names == [torch.ops.aten.rand_like.default]
