"""The tree of modules that holds a graph's weights."""

import torch
from torch import fx, nn

from remixer.rewrite.modules import flattened


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.outer = nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(3, 3), nn.LayerNorm(3)])})
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        first, second = self.outer["inner"]
        return second(first(x)) + first(x) + nn.functional.linear(x, first.weight) + self.shift


def test_a_flattened_graph_has_the_same_weights_under_names_of_one_part():
    deep = fx.symbolic_trace(Deep())
    targets = [node.target for node in deep.graph.nodes]
    flat = flattened(deep)
    x = torch.randn(2, 3)
    assert torch.equal(flat(x), deep(x))
    assert not any("." in str(node.target) for node in flat.graph.nodes if node.op in ("get_attr", "call_module"))
    assert [node.target for node in deep.graph.nodes] == targets  # as it was
    with torch.no_grad():
        deep.get_submodule("outer.inner.0").weight.mul_(2.0)
    assert torch.equal(flat(x), deep(x))
