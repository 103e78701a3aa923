"""Copies of graphs: the same nodes, inputs and outputs, and nothing that torch warns of."""

import warnings

import pytest
import torch
from torch import fx, nn

from remixer.rewrite.capture import capture
from remixer.rewrite.graphs import copied
from remixer.rewrite.modules import flattened
from remixer.rewrite.token_wise import by_parts


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, shift=None):
        hidden = self.down(torch.relu(self.up(x)))
        return {"hidden": hidden, "both": [x + hidden, 3]}


@pytest.fixture
def module():
    return capture(Model().eval(), {"x": torch.randn(2, 5, 4)}).graph_module


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_copy_runs_by_itself(module):
    graph = copied(module.graph)
    graph.lint()
    x = torch.randn(1, 7, 4)
    expected, found = module(x=x), fx.GraphModule(module, graph)(x=x)
    assert torch.equal(found["hidden"], expected["hidden"])
    assert found["both"][1] == 3
    assert [(node.name, node.meta.keys()) for node in graph.nodes] == [
        (node.name, node.meta.keys()) for node in module.graph.nodes
    ]


def test_what_is_done_to_a_copy_is_not_done_to_the_graph(module):
    before = [(node.name, node.target, node.args) for node in module.graph.nodes]
    graph = copied(module.graph)
    for node in graph.nodes:
        node.meta["mark"] = True
        node.name = f"other_{node.name}"
    graph.output_node().args = (None,)
    assert [(node.name, node.target, node.args) for node in module.graph.nodes] == before
    assert not any("mark" in node.meta for node in module.graph.nodes)


def test_a_graph_without_an_output():
    graph = fx.Graph()
    graph.placeholder("x")
    assert [node.op for node in copied(graph).nodes] == ["placeholder"]


def test_what_copies_a_graph_lets_nobody_read_warnings_of_torch(module):
    x = torch.randn(1, 3, 4)
    with torch.no_grad():
        expected = module(x=x)["hidden"]
        assert torch.equal(flattened(module)(x=x)["hidden"], expected)
        forward = by_parts(module)
        assert forward is not None
        assert torch.equal(forward(module, x=x)["hidden"], expected)
