"""What torch.vmap computes becomes plain operators, which passes can cut, move and drop."""

import pytest
import torch
from torch import nn
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch._functorch import predispatch

from remixer.rewrite.capture import capture
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.vmapped import write_out_vmaps
from remixer.testing import assert_close


class Vmapped(nn.Module):
    """A function of one token, or of two, over all of them."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.function(x, self.weight)


def pairs(x, weight):
    return torch.vmap(lambda a: torch.vmap(lambda b: (a * b).sum() + torch.outer(a, b).exp().sum())(x))(x)


def apart(x, weight):
    """Two transforms, of which the second reads the first's result, and both what was computed before."""
    scale = weight.exp()
    weighted = torch.vmap(lambda a: a * scale)(x)
    return torch.vmap(lambda a, b: a * b.sum() + scale.sum(), in_dims=(1, None))(weighted, x)


def mask(x, weight):
    """As masks are made: a table is read at an index that is a scalar inside, and wraps no number of Python's."""
    exists, index = x[:, 0] > 0, torch.arange(x.shape[0])
    with TransformGetItemToIndex():
        seen = torch.vmap(torch.vmap(lambda q, k: (k <= q) & exists[k], (None, 0)), (0, None))(index, index)
    return seen.to(x.dtype) @ x


@pytest.mark.parametrize("function", [pairs, apart, mask])
def test_it_is_written_out(function):
    model = Vmapped(function)
    program = capture(model, (torch.randn(3, 4),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in targets if "batch_dim" in name or "vmap" in name or "flat_apply" in name]
    assert not [fixed for fixed in program.static if fixed.dim == 0]
    assert all("val" in node.meta for node in program.graph.nodes if node.op != "output")
    for tokens in (1, 3, 7):
        x = torch.randn(tokens, 4)
        assert_close(program.graph_module(x), model(x))


def test_nothing_is_changed_where_there_is_none():
    graph_module = capture(nn.Linear(4, 4), (torch.randn(3, 4),)).graph_module
    before = list(graph_module.graph.nodes)
    write_out_vmaps(graph_module)
    assert list(graph_module.graph.nodes) == before


def test_what_can_not_be_batched_is_refused_and_no_level_stays_open():
    class Wrapped(nn.Module):
        def forward(self, x):
            return torch.vmap(lambda a: a.cos())(x)

    exported = torch.export.export(Wrapped(), (torch.randn(3, 4),), strict=False)
    for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.cos.default):
        node.target = torch.ops.aten.nonzero.default
    with pytest.raises(CaptureError, match=r"torch.vmap in .* can't be written out .*What to try"):
        capture(exported)
    level = predispatch._vmap_increment_nesting(2, "error")
    predispatch._vmap_decrement_nesting()
    assert level == 1
