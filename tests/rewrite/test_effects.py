"""Writes, views, and what of them may be changed or removed."""

import pytest
import torch
from torch import fx, nn

from remixer.rewrite.capture import capture
from remixer.rewrite.effects import (
    dependencies,
    later_readers,
    make_functional,
    remove_dead_code,
    storages_of,
    write_between,
    written,
    written_storages,
)

aten = torch.ops.aten


def exported_graph(forward, *inputs):
    """The graph as torch.export gives it, nothing cleaned."""

    class Model(nn.Module):
        def forward(self, *args):
            return forward(*args)

    program = torch.export.export(Model(), inputs, strict=False)
    module = program.module(check_guards=False)
    return fx.GraphModule(module, module.graph)


def run(forward, *inputs):
    with torch.no_grad():
        return forward(*[value.clone() for value in inputs])


def chain(x):
    return (x + 1).mul_(2).add_(3).relu_()


def reads_the_base(x):
    y = x + 1
    y.mul_(2)
    return y


def reads_a_view(x):
    y = x + 1
    view = y[0]
    y.add_(5)
    return view * 1


def writes_a_view(x):
    y = torch.zeros(4, 3)
    y[1:].copy_(x[1:])
    y[0].fill_(7)
    return y * 2


def writes_behind_a_broadcast(x):
    first, _ = torch.broadcast_tensors(x + 1, torch.zeros(4, 3))
    y = first + 0
    y.mul_(3)
    return y


def writes_behind_a_split(x):
    y = x + 1
    top, bottom = y.split(2)
    top.mul_(3)
    bottom.add_(1)
    return y


def promotes(x):
    y = torch.arange(3, dtype=torch.int32)
    y.add_(torch.ones(3, dtype=torch.int64))
    return y


def several(x):
    y = x * 2
    z = y.add_(1)
    w = z.mul_(3)
    return z + w


WRITERS = [chain, reads_the_base, reads_a_view, writes_a_view, writes_behind_a_broadcast, writes_behind_a_split]
WRITERS += [promotes, several]


@pytest.mark.parametrize("forward", WRITERS)
def test_functional_graphs_compute_the_same(forward):
    x = torch.randn(4, 3)
    module = exported_graph(forward, x)
    make_functional(module.graph)
    remove_dead_code(module.graph)
    module.recompile()
    expected = run(forward, x)
    actual = module(x)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_a_chain_of_writes_becomes_functional():
    module = exported_graph(chain, torch.randn(4, 3))
    assert make_functional(module.graph) == 3
    assert not [node for node in module.graph.nodes if written(node)]


def test_writes_that_others_see_stay():
    for forward in (reads_a_view, writes_a_view, writes_behind_a_split):
        module = exported_graph(forward, torch.randn(4, 3))
        before = len([node for node in module.graph.nodes if written(node)])
        make_functional(module.graph)
        assert len([node for node in module.graph.nodes if written(node)]) == before


def test_a_write_that_would_change_the_dtype_stays():
    graph = fx.Graph()
    with torch._subclasses.FakeTensorMode():
        narrow, wide = torch.ones(3, dtype=torch.int32), torch.ones(3, dtype=torch.int64)
    x = graph.placeholder("x")
    made = graph.call_function(aten.neg.default, (x,))
    other = graph.placeholder("other")
    write = graph.call_function(aten.add_.Tensor, (made, other))
    graph.output(write)
    x.meta["val"], made.meta["val"], other.meta["val"], write.meta["val"] = narrow, narrow, wide, narrow
    assert make_functional(graph) == 0


def test_inputs_and_parameters_that_are_written_stay_written():
    graph = fx.Graph()
    x = graph.placeholder("x")
    view = graph.call_function(aten.select.int, (x, 0, 0))
    graph.call_function(aten.fill_.Scalar, (view, 3.0))
    dead = graph.call_function(aten.neg.default, (x,))
    graph.call_function(aten.fill_.Scalar, (dead, 3.0))
    graph.output(x)
    assert make_functional(graph) == 0
    assert remove_dead_code(graph) == 2
    assert [str(node.target) for node in graph.nodes][1:3] == ["aten.select.int", "aten.fill_.Scalar"]


def test_what_an_out_operator_writes():
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    made = graph.call_function(aten.neg.default, (y,))
    write = graph.call_function(aten.add.out, (x, x), {"out": made})
    reader = graph.call_function(aten.neg.default, (made,))
    graph.output(reader)
    assert written(write) == [made]
    assert storages_of(write) == {made}
    assert written_storages(graph) == {made}
    assert list(later_readers(graph)) == [(write, reader)]
    assert dependencies(graph).has_edge(write, reader)
    assert remove_dead_code(graph) == 0


def test_a_write_between_a_reader_and_the_end():
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(aten.neg.default, (x,))
    view = graph.call_function(aten.select.int, (made, 0, 0))
    maybe = graph.call_function(aten.reshape.default, (made, [-1]))
    first = graph.call_function(aten.neg.default, (view,))
    graph.call_function(aten.fill_.Scalar, (x, 3.0))
    write = graph.call_function(aten.fill_.Scalar, (graph.call_function(aten.select.int, (made, 0, 1)), 3.0))
    last = graph.call_function(aten.neg.default, (view,))
    end = graph.call_function(aten.add.Tensor, (first, last))
    graph.output((end, maybe))
    assert write_between(made, {view, first}, end) is write
    assert write_between(made, {view, last}, end) is None  # the view is read behind the write
    assert write_between(made, {maybe}, end) is write  # it may be a copy
    assert write_between(made, set(), end) is None
    assert write_between(made, {view, first}, write.prev) is None


def test_dead_asserts_do_not_keep_a_mask_alive():
    class Checked(nn.Module):
        def forward(self, x):
            mask = x[:, :, None] > x[:, None, :]
            torch._assert(mask.shape[0] > 0, "no rows")
            mask.to(torch.float32)
            return x * 2

    graph = capture(Checked(), (torch.randn(2, 5),)).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_function", "output"]
