"""Pieces of graphs, run on inputs of one's choice."""

import pytest
import torch
from torch import nn

from remixer.rewrite.capture import capture
from remixer.rewrite.program import expression
from remixer.rewrite.slices import Slicer, evaluate

aten = torch.ops.aten


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(50))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x, keep):
        T = x.shape[1]
        mask = torch.zeros(T, T)
        mask[1:].fill_(1.0)
        mask[:, 0].copy_(self.table[:T])
        hidden = torch.zeros_like(x.exp())[:, :, 0]
        score = x.cos().sum(-1)
        return mask[None] + keep[:, None, :] + hidden[:, None, :] + score[:, None, :]


@pytest.fixture
def program():
    return capture(Masked().eval(), (torch.randn(2, 5, 3), torch.ones(2, 5)))


def node(program, target, index=0):
    return program.graph.find_nodes(op="call_function", target=target)[index]


def sizes(program, batch, length):
    return {**dict.fromkeys(program.length, length), **dict.fromkeys(program.batch, batch)}


def last_read_of_the_mask(program):
    return node(program, aten.unsqueeze.default)


def test_writes_are_part_of_a_slice(program):
    slicer = Slicer(program)
    found = slicer.between([last_read_of_the_mask(program)], [])
    assert {aten.copy_.default, aten.fill_.Scalar} <= {one.target for one in found}
    value = slicer.run(last_read_of_the_mask(program), {}, sizes(program, 2, 7))
    expected = torch.ones(7, 7)
    expected[0] = 0.0
    expected[:, 0] = program.graph_module.table[:7]
    assert torch.equal(value[0], expected)


def test_overrides_take_the_place_of_parameters(program):
    value = Slicer(program).run(
        last_read_of_the_mask(program), {}, sizes(program, 2, 7), {"table": torch.full((50,), 9.0)}
    )
    assert (value[0, :, 0] == 9.0).all()


def test_what_only_a_shape_is_read_of_is_not_computed(program):
    slicer = Slicer(program)
    zeros = node(program, aten.zeros_like.default)
    assert aten.exp.default not in {one.target for one in slicer.between([zeros], [])}
    assert slicer.run(zeros, {}, sizes(program, 4, 6)).shape == (4, 6, 3)


def test_values_that_are_fed_end_a_slice(program):
    slicer = Slicer(program)
    cosine, total = node(program, aten.cos.default), node(program, aten.sum.dim_IntList)
    assert slicer.between([total], [cosine]) == [total]
    assert torch.equal(slicer.run(total, {cosine: torch.ones(2, 5, 3)}, sizes(program, 2, 5)), torch.full((2, 5), 3.0))
    fed = torch.ones(1)
    assert slicer.run(cosine, {cosine: fed}, {}) is fed


def test_an_input_that_was_not_fed(program):
    with pytest.raises(KeyError, match="depends on the values of input 'x'"):
        Slicer(program).run(node(program, aten.cos.default), {}, sizes(program, 2, 5))


def test_nothing_outside_is_written_into():
    class Writes(nn.Module):
        def forward(self, x):
            y = x.relu()
            y[0].fill_(3.0)
            return y * 2

    program = capture(Writes(), (torch.randn(3, 4),))
    relu, fed = node(program, aten.relu.default), torch.zeros(3, 4)
    result = Slicer(program).run(node(program, aten.mul.Tensor), {relu: fed}, sizes(program, 3, 4))
    assert (result[0] == 6.0).all()
    assert not fed.any()


def test_a_graph_that_changed_is_noticed(program):
    slicer = Slicer(program)
    total = node(program, aten.sum.dim_IntList)
    with program.graph.inserting_before(total):
        late = program.graph.call_function(aten.sin.default, (total.args[0],))
    total.update_arg(0, late)
    with pytest.raises(KeyError):
        slicer.run(total, {node(program, aten.cos.default): torch.ones(2, 5, 3)}, sizes(program, 2, 5))


def test_sizes_at_values_of_their_symbols(program):
    size = program.graph.find_nodes(op="placeholder")[0].meta["val"].shape[1]
    assert evaluate(size + 3, {expression(size): 4}) == 7
    assert evaluate(5, {}) == 5
    with pytest.raises(KeyError, match="depends on symbols without a value"):
        evaluate(size, {})
