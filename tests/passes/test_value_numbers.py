"""Nodes with one number have one value."""

import torch
from torch import nn

from remixer.passes.value_numbers import value_numbers
from remixer.rewrite.capture import capture

aten = torch.ops.aten


class Masks(nn.Module):
    def forward(self, x):
        first, second = (torch.ones_like(x).tril() * 2 for _ in range(2))
        other = torch.ones_like(x).tril(1) * 2
        drawn = [torch.rand_like(x) + 1 for _ in range(2)]
        written = torch.zeros_like(x)
        written[:, 0] = 1.0
        plain = torch.zeros_like(x)
        return first + x, second + x, other + x, drawn[0], drawn[1], written + x, plain + x


def test_the_same_operators_on_the_same_operands_share_a_number():
    program = capture(Masks().eval(), (torch.randn(4, 4),))
    numbers = value_numbers(program.graph)
    (results,) = program.graph.output_node().args
    first, second, other, drawn, again, written, plain = (numbers[node] for node in results)
    assert first == second
    assert len({first, other, drawn, again, written, plain}) == 6
    assert numbers.keys() == set(program.graph.nodes)


def test_equal_numbers_are_equal_values():
    program = capture(Masks().eval(), (torch.randn(4, 4),))
    numbers, seen = value_numbers(program.graph), {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                assert torch.equal(seen.setdefault(numbers[node], value), value)
            return value

    Watch(program.graph_module).run(torch.randn(4, 4))
    assert len(seen) < len(numbers)
