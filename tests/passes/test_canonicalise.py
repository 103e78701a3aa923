"""What changes nothing goes; what only seems to change nothing stays."""

import pytest
import torch
from torch import nn

from remixer.passes.canonicalise import Canonicalise
from remixer.rewrite.capture import capture

aten = torch.ops.aten


def left(forward, *inputs):
    class Model(nn.Module):
        def forward(self, *args):
            return forward(*args)

    program = capture(Model(), inputs or (torch.randn(3, 5),))
    result = Canonicalise()(program)
    expected, actual = (one.graph_module(*program.args) for one in (program, result.program))
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
    return [node.target for node in result.program.graph.nodes if node.op == "call_function"]


GONE = {
    "to": lambda x: x.to(torch.float32) * 2,
    "device": lambda x: x.to("cpu") * 2,
    "type_as": lambda x: x.type_as(x + 1) * 2,
    "slice": lambda x: x[:, :] * 2,
    "expand": lambda x: x.expand(x.shape) * 2,
    "add": lambda x: (x + 0) * 2,
    "sub": lambda x: (x - 0.0) * 2,
    "mul": lambda x: (x * 1.0) * 2,
    "div": lambda x: (x / 1) * 2,
}


@pytest.mark.parametrize("name", GONE)
def test_what_changes_nothing_goes(name):
    targets = [target for target in left(GONE[name]) if target not in (aten.sym_size.int, aten.add.Tensor)]
    assert targets == [aten.mul.Tensor]


STAYS = {
    "a cast": (lambda x: x.to(torch.float64), aten.to.dtype),
    "a cast that copies": (lambda x: x.to(torch.float32, copy=True), aten.to.dtype),
    "a slice from one": (lambda x: x[:, 1:], aten.slice.Tensor),
    "every other": (lambda x: x[:, ::2], aten.slice.Tensor),
    "an expansion": (lambda x: x[:1].expand(7, -1), aten.expand.default),
    "a promotion": (lambda x: (x > 0) + 0, aten.add.Tensor),
    "a true division": (lambda x: (x > 0).long() / 1, aten.div.Tensor),
    "a floor": (lambda x: torch.div(x, 1, rounding_mode="floor"), aten.div.Tensor_mode),
    "times two": (lambda x: x * 2, aten.mul.Tensor),
    "contiguous": (lambda x: x.t().contiguous(), aten.contiguous.default),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_changes_something_stays(name):
    forward, target = STAYS[name]
    assert target in left(forward)


def test_a_copy_that_is_written_to_stays():
    def forward(x):
        y = x + 1
        z = y + 0
        y[0].fill_(9.0)
        return z * 2 + y

    assert left(forward).count(aten.add.Tensor) == 3


def test_a_slice_at_the_traced_length_stays():
    """x[:, :5] keeps everything at length 5, and cuts at length 9."""
    assert aten.slice.Tensor in left(lambda x: x[:, :5])


def test_every_fold_is_an_edit():
    program = capture(nn.Sequential(nn.Identity()), (torch.randn(3, 5),))
    assert not Canonicalise()(program).modified
