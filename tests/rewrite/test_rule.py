"""Applying rules: counts, order, misses, origins."""

import pytest
import torch
from torch import nn

from remixer.passes.base import ApplyRules
from remixer.rewrite.capture import capture
from remixer.rewrite.match import Miss
from remixer.rewrite.rule import Rule
from remixer.testing import assert_rewrites

aten = torch.ops.aten


class DoubleNegation(Rule):
    """neg(neg(x)) is x."""

    anchor = "outer"

    def pattern(self, p):
        return p.call("aten.neg", p.call("aten.neg", p.tensor("x")), name="outer")

    def rewrite(self, found, editor):
        return found["x"]


class SquareAsProduct(Rule):
    """x ** 2 is x * x, but for whole numbers."""

    def pattern(self, p):
        return p.call("aten.pow.Tensor_Scalar", p.tensor("x"), 2)

    def check(self, match):
        if not match["x"].meta["val"].is_floating_point():
            return Miss("whole numbers keep their power", match.root)
        return match

    def rewrite(self, found, editor):
        return editor.call(aten.mul.Tensor, found["x"], found["x"], before=found.root)


class Fast(SquareAsProduct):
    def rewrite(self, found, editor):
        return editor.call(aten.square.default, found["x"], before=found.root)


class Negated(nn.Module):
    def forward(self, x):
        return (x * 2).neg().neg() + x.neg().neg()


class Plain(nn.Module):
    def forward(self, x):
        return x * 2 + x


class Squared(nn.Module):
    def forward(self, x):
        return x**2 + 1


class Product(nn.Module):
    def forward(self, x):
        return x * x + 1


X = torch.randn(3, 4)


def test_every_match_is_rewritten():
    assert_rewrites(Negated(), Plain(), DoubleNegation(), times=2, inputs=X)


def test_overlapping_matches_are_rewritten_once_each():
    class Four(nn.Module):
        def forward(self, x):
            return (x * 2).neg().neg().neg().neg()

    result = assert_rewrites(Four(), None, DoubleNegation(), times=2, inputs=X)
    assert [rewrite.rule for rewrite in result.rewrites] == ["DoubleNegation"] * 2


def test_new_nodes_say_where_they_came_from():
    result = assert_rewrites(Squared(), Product(), SquareAsProduct(), inputs=X)
    (rewrite,) = result.rewrites
    assert rewrite.added == ("mul_tensor",)
    assert rewrite.source.startswith("test_rule.py:")
    (node,) = [node for node in result.program.graph.nodes if node.name == "mul_tensor"]
    assert node.meta["origin"].rule == "SquareAsProduct"
    assert node.meta["val"].shape == result.program.graph.find_nodes(op="placeholder")[0].meta["val"].shape


def test_a_check_that_refuses_is_a_miss():
    assert_rewrites(
        Squared(), None, SquareAsProduct(), times=0, inputs=torch.ones(3, 4, dtype=torch.long),
        misses="whole numbers keep their power",
    )  # fmt: skip


def test_a_near_match_is_a_miss_once_its_anchor_was_met():
    class Once(nn.Module):
        def forward(self, x):
            return -x.relu()

    class Further(DoubleNegation):
        anchor = "x"

    (miss,) = ApplyRules((DoubleNegation(),))(capture(Once(), X)).misses
    assert (miss.reason, miss.rule) == ("expected aten.neg, found aten.relu", "DoubleNegation")
    assert ApplyRules((Further(),))(capture(Once(), X)).misses == ()


def test_the_first_rule_that_matches_wins_and_earlier_misses_are_forgotten():
    class Refusing(SquareAsProduct):
        def check(self, match):
            return Miss("never", match.root)

    program = capture(Squared(), X)
    result = ApplyRules((Refusing(), Fast(), SquareAsProduct()))(program)
    assert [rewrite.rule for rewrite in result.rewrites] == ["Fast"]
    assert result.misses == ()
    assert [miss.rule for miss in ApplyRules((Refusing(),))(program).misses] == ["Refusing"]


def test_nodes_that_nobody_reads_are_passed_over():
    program = capture(Squared(), X)
    once = ApplyRules((SquareAsProduct(),))(program)
    assert ApplyRules((SquareAsProduct(),))(once.program).rewrites == ()


def test_an_error_in_a_rewrite_is_not_hidden():
    class Broken(SquareAsProduct):
        def rewrite(self, found, editor):
            raise ZeroDivisionError("in the rule")

    with pytest.raises(ZeroDivisionError, match="in the rule"):
        ApplyRules((Broken(),))(capture(Squared(), X))
