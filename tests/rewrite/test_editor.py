"""Edits and their record."""

import pytest
import torch
from torch import nn

from remixer.rewrite.capture import capture
from remixer.rewrite.editor import Editor
from remixer.rewrite.match import Miss

aten = torch.ops.aten


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.register_buffer("unused_later", torch.ones(4))

    def forward(self, x):
        return self.first(x) + self.tied(x) + self.second(x) * self.unused_later


@pytest.fixture
def editor():
    return Editor(capture(Two().eval(), (torch.randn(3, 4),)).copy(), "Author")


def find(editor, name):
    return next(node for node in editor.graph.nodes if node.name == name)


def test_a_call_gets_a_value_a_place_and_an_origin(editor):
    linear = find(editor, "linear")
    node = editor.call(aten.relu.default, linear, before=find(editor, "linear_1"))
    assert node.next is find(editor, "linear_1")
    assert node.meta["val"].shape == linear.meta["val"].shape
    assert node.meta["origin"].rule == "Author"
    assert node.meta["nn_module_stack"] == find(editor, "linear_1").meta["nn_module_stack"]
    assert [(edit.kind, edit.name) for edit in editor.edits] == [("add", node.name)]


def test_a_rewrite_does_not_read_itself(editor):
    linear = find(editor, "linear")
    with editor.rewriting("Rule", linear):
        node = editor.call(aten.relu.default, linear, before=linear.next)
        editor.replace(linear, node)
    assert node.args == (linear,)
    assert list(linear.users) == [node]
    assert editor.rewrites[0].removed == "linear"
    assert editor.rewrites[0].added == (node.name,)


def test_replacing_a_node_by_itself_is_no_edit(editor):
    editor.replace(find(editor, "linear"), find(editor, "linear"))
    assert editor.edits == []


def test_modules_operands_and_erasing(editor):
    x = find(editor, "x")
    assert editor.register("first.gate", nn.Identity()) == "first.gate"
    assert editor.register("first.gate", nn.Identity()) == "first.gate_1"
    node = editor.call_module("first.gate", {"input": x}, before=x.next, fake=x.meta["val"])
    assert node.kwargs == {"input": x}
    editor.set_operands(node, {"input": find(editor, "x"), "other": 1})
    assert node.kwargs["other"] == 1
    editor.erase(node)
    editor.miss(Miss("because"))
    assert [edit.kind for edit in editor.edits] == ["register", "register", "add", "replace", "erase"]
    assert [miss.reason for miss in editor.misses] == ["because"]


def test_a_sweep_takes_nodes_weights_and_modules(editor):
    names = [edit.name for edit in editor.edits]
    assert names == []
    output = editor.graph.output_node()
    output.args = ((find(editor, "linear"),),)
    removed = editor.sweep()
    assert removed > 4
    assert sorted(editor.graph_module.state_dict()) == ["first.bias", "first.weight", "tied.weight"]
    swept = {edit.name for edit in editor.edits if edit.kind == "sweep"} - {"nodes"}
    assert swept == {"second.weight", "second.bias", "tied.bias", "unused_later"}
    assert editor.graph_module.tied.weight is editor.graph_module.first.weight
