"""Graphs that hold at some sizes only: what is fixed, traced again or refused."""

import pytest
import torch
from torch import nn

from remixer.rewrite.capture import capture
from remixer.rewrite.elsewhere import example_at, sizes_of_example
from remixer.rewrite.errors import CaptureError
from remixer.testing import assert_close


class Skipping(nn.Module):
    """Leaves out a mask that hides nothing, but not while it is traced, and does something else then."""

    def forward(self, x, mask):
        if not torch.compiler.is_exporting() and bool(mask.all()):
            return x.cumsum(1)
        return x * mask[..., None]


def test_a_mask_that_hides_nothing_has_to_do_so_in_the_graph():
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    with pytest.raises(CaptureError, match="other outputs than Skipping where no token is masked: output 0 differs"):
        capture(Skipping(), (torch.randn(2, 5, 4), mask))


class Remembering(nn.Module):
    """A number that is computed of a size in the example's run, and is a constant in the graph."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        size = x.shape[self.dim]
        return x * (size.node.hint if isinstance(size, torch.SymInt) else size)


@pytest.mark.parametrize(("dim", "size"), [(0, 1), (1, 6)])
def test_a_graph_that_holds_at_one_size_only_is_static(dim, size):
    model = Remembering(dim)
    x = torch.randn(1, 6, 4)
    program = capture(model, (x,))
    (static,) = program.static
    assert str(static) == f"x dim {dim} is fixed at {size}: the graph that torch.export gives holds at no other"
    assert_close(program.graph_module(x), model(x))


def test_sizes_that_the_model_refuses_tell_nothing():
    class Short(nn.Module):
        def forward(self, x):
            if not torch.compiler.is_exporting() and x.shape[1] != 6:
                raise ValueError("six tokens only")
            return x * 2

    assert capture(Short(), (torch.randn(2, 6, 4),)).static == ()


class Keeping(nn.Module):
    """Positions that are kept for the length that it ran last, as rotary embeddings are in some models."""

    def __init__(self, stride=1, longest=False):
        super().__init__()
        self.length, self.kept, self.stride, self.longest = None, None, stride, longest

    def forward(self, x):
        x = x[:, :: self.stride]
        length = x.shape[1]
        if self.length is None or (length > self.length if self.longest else length != self.length):
            self.length, self.kept = length, torch.arange(length, dtype=x.dtype)
        return x * self.kept[:length, None]


@pytest.mark.parametrize("ran", [None, 6, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_a_model_keeps_of_its_last_run_is_not_in_the_graph(stride, ran):
    model, x = Keeping(stride), torch.randn(2, 6, 4)
    if ran:
        model(x.new_ones(1, ran, 4))
    program = capture(model, (x,))
    assert program.static == ()
    for length in (3, 6, 9, 30):
        x = torch.randn(1, length, 4)
        assert_close(program.graph_module(x), Keeping(stride)(x))


@pytest.mark.parametrize(("stride", "longest"), [(1, 9), (2, 10)])
def test_a_table_of_the_longest_run_limits_the_length(stride, longest):
    model, x = Keeping(stride, longest=True), torch.randn(2, 6, 4)
    model(x.new_ones(1, 9, 4))
    program = capture(model, (x,))
    (length,) = program.length
    assert program.limits[length][1] == longest


@pytest.mark.parametrize("keeps", [False, True])
def test_only_what_keeps_something_is_traced_again(keeps, monkeypatch):
    class Fixed(Remembering):
        kept = 0

        def forward(self, x):
            if keeps:
                self.kept += 1
            return super().forward(x)

    traced = []
    monkeypatch.setattr(torch.export, "export", lambda *a, f=torch.export.export, **b: traced.append(a) or f(*a, **b))
    (static,) = capture(Fixed(1), (torch.randn(2, 6, 4),)).static
    assert (static.dim, static.size) == (1, 6)
    assert len(traced) == 2 + keeps


def test_rows_that_are_gone_through_one_by_one_fix_the_batch_of_all_inputs():
    class OneByOne(nn.Module):
        def forward(self, x, mask):
            return torch.stack([row.cumsum(0) for row in x.unbind()]) * mask[..., None]

    x, mask = torch.randn(2, 7, 3), torch.ones(2, 7)
    program = capture(OneByOne(), (x, mask))
    assert {(one.input, one.dim, one.size) for one in program.static} == {("x", 0, 2), ("mask", 0, 2)}
    assert_close(program.graph_module(x[:, :5], mask[:, :5]), OneByOne()(x[:, :5], mask[:, :5]))


class Masked(nn.Module):
    """Tokens by number, some of them hidden."""

    def forward(self, ids, mask):
        return ids * mask


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [11, 12, 13, 14, 15]),
        ([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]], [12, 13, 14]),
        ([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]], [11, 12, 13, 14, 15]),  # no place is left
    ],
)
def test_hidden_tokens_of_an_example_can_be_left_out(mask, kept):
    ids = torch.arange(11, 16).expand(2, 5).clone()
    program = capture(Masked(), (ids, torch.tensor(mask)))
    sizes = sizes_of_example(program)
    (token,) = (symbol for symbol, size in sizes.items() if size == 5)
    (found, theirs), _ = example_at(program, {**sizes, token: 7}, lambda own: own)
    assert found[1].tolist() == (kept * 3)[:7]
    assert len(kept) == 5 or bool(theirs.all())
    _, made = example_at(program, {**sizes, token: 7}, torch.zeros_like)[0]
    assert made.shape == (2, 7)
    assert not made.any()
    (found, _), _ = example_at(program, sizes)
    assert found.equal(ids)
