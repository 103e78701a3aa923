"""Programs: copies, symbols, and plain graph modules taken as programs."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from remixer.rewrite.capture import capture
from remixer.rewrite.program import Program, StaticDimension, bytes_at, expression, input_symbols, shape_of


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.register_buffer("transient", torch.ones(4), persistent=False)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.linear.weight

    def forward(self, x, y=None):
        return {"a": self.drop(self.linear(x)) + self.tied(x) * self.transient, "b": [x + 1, 3]}


@pytest.fixture
def program():
    return capture(Model().eval(), {"x": torch.randn(2, 5, 4)})


def test_a_copy_shares_weights_and_nothing_else(program):
    twin = program.copy()
    assert [node.name for node in twin.graph.nodes] == [node.name for node in program.graph.nodes]
    assert twin.graph_module.linear.weight is program.graph_module.linear.weight
    assert twin.graph_module.state_dict().keys() == program.graph_module.state_dict().keys()
    assert twin.graph_module.tied.weight is twin.graph_module.linear.weight
    for node in list(twin.graph.nodes):
        node.meta["mark"] = True
    assert not any("mark" in node.meta for node in program.graph.nodes)
    x = torch.randn(1, 2, 4)
    assert torch.equal(twin.graph_module(x=x)["a"], program.graph_module(x=x)["a"])
    assert twin.graph_module(x=x)["b"][1] == 3


def test_a_copy_keeps_the_mode(program):
    program.graph_module.train()
    assert program.copy().graph_module.training
    program.graph_module.eval()
    assert not program.copy().graph_module.training


def test_code_that_is_looked_at_is_up_to_date(program):
    twin = program.copy()
    last = twin.graph.output_node()
    with twin.graph.inserting_before(last):
        doubled = twin.graph.call_function(torch.ops.aten.mul.Tensor, (last.args[0][0], 2))
    last.args = ((doubled, *last.args[0][1:]),)
    twin.graph_module.recompile()
    assert "mul" in twin.graph_module.code
    x = torch.randn(1, 2, 4)
    assert torch.equal(twin.graph_module(x=x)["a"], 2 * program.graph_module(x=x)["a"])
    assert torch.equal(copy.deepcopy(twin.graph_module)(x=x)["a"], twin.graph_module(x=x)["a"])


def test_a_graph_module_knows_its_program(program):
    found = Program.of(program.graph_module)
    assert found == program
    assert Program.of(copy.deepcopy(program.graph_module)).length == program.length


def test_a_plain_graph_module_is_a_program_too():
    graph_module = fx.symbolic_trace(nn.Linear(4, 4))
    assert Program.of(graph_module).batch == frozenset()


def test_symbols_and_shapes(program):
    x = program.graph.find_nodes(op="placeholder")[0]
    batch, length, width = shape_of(x)
    assert input_symbols(program.graph) == (frozenset([batch]), frozenset([length]))
    assert (width, expression(7)) == (4, 7)
    assert shape_of(program.graph.output_node()) is None


def test_a_static_dimension_in_words():
    assert str(StaticDimension("x", 1, 8, "because")) == "x dim 1 is fixed at 8: because"


class Several(nn.Module):
    """Values of three, one and no dimensions, and a size."""

    def forward(self, hidden):
        return hidden.half() * 2, hidden.mean((1, 2)), hidden.mean(), hidden.shape[1]


def test_bytes_at_some_sizes():
    exported = torch.export.export(
        Several(), (torch.randn(2, 9, 8),), dynamic_shapes={"hidden": {0: Dim.AUTO, 1: Dim.AUTO}}
    )
    (hidden,) = exported.graph.find_nodes(op="placeholder")
    rows, tokens = (size.node.expr for size in hidden.meta["val"].shape[:2])
    values = exported.graph.output_node().args[0]
    assert [bytes_at(node, {rows: 3, tokens: 5}) for node in values] == [240, 12, 4, None]
    assert [bytes_at(node, {rows: 3}) for node in values] == [None, 12, 4, None]
