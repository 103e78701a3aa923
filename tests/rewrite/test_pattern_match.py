"""Patterns on small graphs: what matches, and the reason where nothing does."""

import operator

import pytest
import sympy
import torch
from torch import fx, nn

from remixer.rewrite.errors import PatternError
from remixer.rewrite.match import Match, Miss, arguments, module_path, source_line
from remixer.rewrite.matcher import Matcher
from remixer.rewrite.pattern import Recorder, roots

aten = torch.ops.aten
p = Recorder()


def traced(build):
    """A graph module of `build(graph, x, y)`, and the node that it gives back."""
    graph = fx.Graph()
    last = build(graph, graph.placeholder("x"), graph.placeholder("y"))
    graph.output(last)
    return fx.GraphModule(nn.Module(), graph), last


def call(graph, target, *args, **kwargs):
    return graph.call_function(target, args, kwargs)


def matched(pattern, build):
    module, last = traced(build)
    return Matcher(module, pattern).match(last)


def test_a_call_and_its_operands():
    found = matched(
        p.call("aten.relu", p.call("aten.mul.Tensor", p.tensor("a"), p.constant("c"), name="product")),
        lambda g, x, y: call(g, aten.relu.default, call(g, aten.mul.Tensor, x, 2.0)),
    )
    assert isinstance(found, Match)
    assert (found["a"].name, found["c"], found["product"].target) == ("x", 2.0, aten.mul.Tensor)
    assert [node.target for node in found.inner] == [aten.relu.default, aten.mul.Tensor]


def test_arguments_that_are_not_listed_need_their_default():
    pattern = p.call("aten.add.Tensor", p.any("a"), p.any("b"))
    assert isinstance(matched(pattern, lambda g, x, y: call(g, aten.add.Tensor, x, y)), Match)
    assert isinstance(matched(pattern, lambda g, x, y: call(g, aten.add.Tensor, x, y, alpha=1)), Match)
    miss = matched(pattern, lambda g, x, y: call(g, aten.add.Tensor, x, y, alpha=2))
    assert str(miss).startswith("argument 'alpha' of add_tensor is set to 2")
    loose = p.call("aten.add.Tensor", p.any("a"), p.any("b"), rest=True)
    assert isinstance(matched(loose, lambda g, x, y: call(g, aten.add.Tensor, x, y, alpha=2)), Match)


def test_arguments_of_functions_that_are_not_listed():
    pattern = p.call(operator.getitem, p.any("x"))
    assert "argument '1' of" in str(matched(pattern, lambda g, x, y: call(g, operator.getitem, x, 0)))


def test_too_few_arguments():
    pattern = p.call(operator.neg, p.any("a"), p.any("b"))
    assert "too few arguments" in str(matched(pattern, lambda g, x, y: call(g, operator.neg, x)))


def test_commuting_operands():
    def build(order):
        return lambda g, x, y: call(g, aten.mul.Tensor, *order(x, call(g, aten.relu.default, y)))

    pattern = p.call("aten.mul.Tensor", p.call("aten.relu", p.any("y")), p.any("x"), commutes=True)
    for order in (lambda x, y: (x, y), lambda x, y: (y, x)):
        found = matched(pattern, build(order))
        assert (found["x"].name, found["y"].name) == ("x", "y")
    fixed = p.call("aten.mul.Tensor", p.call("aten.relu", p.any("y")), p.any("x"))
    assert isinstance(matched(fixed, build(lambda x, y: (x, y))), Miss)


def test_a_sum_with_alpha_does_not_commute():
    relu = p.call("aten.relu", p.any("y"))
    pattern = p.call("aten.add.Tensor", relu, p.any("x"), rest=True, commutes=True)

    def build(g, x, y):
        return call(g, aten.add.Tensor, x, call(g, aten.relu.default, y), alpha=3)

    assert isinstance(matched(pattern, build), Miss)


def test_literals():
    pattern = p.call("aten.unsqueeze", p.any("x"), 2)
    assert isinstance(matched(pattern, lambda g, x, y: call(g, aten.unsqueeze.default, x, 2)), Match)
    miss = matched(pattern, lambda g, x, y: call(g, aten.unsqueeze.default, x, 1))
    assert "an argument is 1, expected 2" in str(miss)


def test_constants_and_tensors():
    constant = p.call("aten.mul.Tensor", p.any("x"), p.constant("c"))
    assert "c is y (placeholder), expected a number" in str(
        matched(constant, lambda g, x, y: call(g, aten.mul.Tensor, x, y))
    )
    tensor = p.call("aten.mul.Tensor", p.any("x"), p.tensor("t"))
    assert "t is 2, expected a tensor" in str(matched(tensor, lambda g, x, y: call(g, aten.mul.Tensor, x, 2)))


def test_one_name_is_one_value():
    pattern = p.call("aten.mul.Tensor", p.any("x"), p.any("x"))
    assert isinstance(matched(pattern, lambda g, x, y: call(g, aten.mul.Tensor, x, x)), Match)
    miss = matched(pattern, lambda g, x, y: call(g, aten.mul.Tensor, x, y))
    assert "two different values stand for 'x'" in str(miss)


def test_either_is_tried_in_order():
    pattern = p.either("kind", relu=p.call("aten.relu", p.any("x")), plain=p.any("x"))
    outer = p.call("aten.neg", pattern)
    relu = matched(outer, lambda g, x, y: call(g, aten.neg.default, call(g, aten.relu.default, x)))
    plain = matched(outer, lambda g, x, y: call(g, aten.neg.default, call(g, aten.abs.default, x)))
    assert (relu.tag("kind"), plain.tag("kind")) == ("relu", "plain")


def through():
    steps = [p.step("aten.mul.Tensor", 0, 1), p.step(["aten.add.Tensor"], 0, 1), p.step("aten.neg")]
    return p.call("aten.relu", p.through(p.call("aten.bmm", p.any("a"), p.any("b")), steps, "path"))


def test_a_chain_gives_its_steps():
    def build(g, x, y):
        product = call(g, aten.bmm.default, x, y)
        added = call(g, aten.add.Tensor, y, call(g, aten.mul.Tensor, product, 2.0))
        return call(g, aten.relu.default, added)

    found = matched(through(), build)
    assert [(taken.node.target, taken.operand) for taken in found.path("path")] == [
        (aten.add.Tensor, 1),
        (aten.mul.Tensor, 0),
    ]


def test_a_chain_turns_back_where_one_operand_leads_nowhere():
    def build(g, x, y):
        blind = call(g, aten.neg.default, call(g, aten.mul.Tensor, x, y))
        return call(g, aten.relu.default, call(g, aten.add.Tensor, blind, call(g, aten.bmm.default, x, y)))

    assert isinstance(matched(through(), build), Match)


def test_a_chain_that_leads_nowhere_ends_soon():
    def build(g, x, y):
        for _ in range(60):
            x = call(g, aten.mul.Tensor, x, x)
        return call(g, aten.relu.default, x)

    assert isinstance(matched(through(), build), Miss)


def test_a_value_read_outside_is_a_miss():
    def build(g, x, y):
        product = call(g, aten.bmm.default, x, y)
        return call(g, aten.relu.default, product), product

    graph = fx.Graph()
    last, product = build(graph, graph.placeholder("x"), graph.placeholder("y"))
    graph.output((last, product))
    module = fx.GraphModule(nn.Module(), graph)
    miss = Matcher(module, through()).match(last)
    assert miss.reason == "what aten.bmm gives is also read by the output"
    shared = p.call("aten.relu", p.call("aten.bmm", p.any("a"), p.any("b"), shared=True))
    found = Matcher(module, shared).match(last)
    assert found.shared == {product}


def test_modules_are_matched_by_class():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

    graph = fx.Graph()
    node = graph.call_module("drop", (graph.placeholder("x"),))
    graph.output(node)
    module = fx.GraphModule(Root(), graph)
    found = Matcher(module, p.call(nn.Dropout, p.any("x"))).match(node)
    assert found.module(found.root).p == 0.5
    assert isinstance(Matcher(module, p.call(nn.Linear, p.any("x"))).match(node), Miss)


def test_the_furthest_attempt_is_what_is_told():
    module, last = traced(lambda g, x, y: call(g, aten.relu.default, call(g, aten.neg.default, x)))
    matcher = Matcher(module, p.call("aten.relu", p.call("aten.neg", p.constant("c")), name="outer"))
    miss = matcher.match(last)
    assert "c is x (placeholder)" in str(miss)
    assert matcher.reached().values["outer"] is last


def test_shapes_bind_letters():
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, 3)
    graph.output(x)
    found = Match(x, fx.GraphModule(nn.Module(), graph), {"x": x})
    sizes = {"B": sympy.Integer(2)}
    assert found.shape("x", "B T", sizes) is None
    assert sizes["T"] == 3
    assert "T = 3, expected 5" in str(found.shape("x", "B T", {"T": sympy.Integer(5)}))
    assert "expected (B, T, C)" in str(found.shape("x", "B T C", {}))


def test_where_a_node_came_from():
    graph = fx.Graph()
    node = graph.placeholder("x")
    assert (module_path(node), source_line(node), str(Miss("why", node))) == ("", "", "why (at x)")
    node.meta["nn_module_stack"] = {"a": ("", ""), "b": ("layers.0", "")}
    node.meta["stack_trace"] = '  File "/somewhere/model.py", line 12, in forward\n    return x'
    assert str(Miss("why", node)) == "why (at x: layers.0, model.py:12)"


def test_arguments_by_name_with_their_defaults():
    _, last = traced(lambda g, x, y: call(g, aten.add.Tensor, x, other=y))
    assert list(arguments(last)) == ["self", "other", "alpha"]
    assert arguments(last)["alpha"] == 1


def test_roots():
    relu, neg = p.call("aten.relu.default", p.any("x")), p.call("aten.neg.default", p.any("x"))
    assert roots(p.either("", a=relu, b=neg)) == {aten.relu.default, aten.neg.default}
    assert roots(p.through(relu, [p.step("aten.abs.default")], "")) == {aten.relu.default, aten.abs.default}
    with pytest.raises(PatternError, match="must end in a call"):
        roots(p.any("x"))


def test_patterns_that_could_never_match():
    with pytest.raises(PatternError, match=r"there is no operator 'aten\.sofmax': torch.ops has no 'sofmax'"):
        p.call("aten.sofmax", p.any("x"))
    with pytest.raises(PatternError, match="expected an operator, a function or a module class, got 3"):
        p.call(3)
    with pytest.raises(PatternError, match="only two operands can commute, there are 1"):
        p.call("aten.neg", p.any("x"), commutes=True)
