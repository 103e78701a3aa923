"""The order of growth of sizes and of work."""

import math

import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from remixer.rewrite.capture import capture
from remixer.rewrite.growth import Order, degree, growth_of

N, B = sympy.Symbol("s1", integer=True, positive=True), sympy.Symbol("s0", integer=True, positive=True)
U = sympy.Symbol("u0", integer=True, positive=True)


@pytest.mark.parametrize(("size", "expected"), [
    (sympy.Integer(7), 0), (N, 1), (B, 0), (U, 1), (3 * N + 5, 1), (N * B, 1), (N**2 + N, 2), (N * (N + 1), 2),
    (FloorDiv(N, 4), 1), (FloorDiv(N + 63, 64) * 64, 1), (FloorDiv(N * N, N + 1), 1), (FloorDiv(B, N), -1),
    (Mod(N, 8), 0), (Max(N, 64), 1), (Min(N, 64), 0), (Max(N, N**2), 2), (Min(N, N**2), 1), (N * Min(N, 32), 1),
    (sympy.Piecewise((N, N > 3), (N**2, True)), 2), (2**N, math.inf), (N ** sympy.Rational(1, 2), 0.5),
])  # fmt: skip
def test_degrees(size, expected):
    assert degree(size, {N: 1.0}) == expected


LEAVES = st.sampled_from([N, sympy.Integer(3), B])
SIZES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, inner).map(lambda pair: Max(*pair)),
        st.tuples(inner, inner).map(lambda pair: Min(*pair)),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: FloorDiv(*pair)),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_degrees_agree_with_numbers(size):
    """Between two large lengths a size grows at most with its degree, and polynomials exactly so."""
    small, large = (sympy.Integer(value) for value in (10**6, 10**9))
    first, second = (float(sympy.sympify(size).subs({N: n, B: 4})) for n in (small, large))
    if first <= 0:
        return
    grown = math.log(second / first) / math.log(10**3)
    assert degree(sympy.sympify(size), {N: 1.0}) == pytest.approx(grown, abs=0.2)


def test_orders():
    assert Order(1) < Order(1, log=True) < Order(2)
    assert [str(Order(d)) for d in (0, 1, 2, 1.5)] == ["1", "n", "n^2", "n^1.5"]
    for text in ("1", "n", "n log n", "n^2", "n^3"):
        assert str(Order.parse(text)) == text
    with pytest.raises(ValueError, match="no order of growth 'n!'; expected '1', 'n', 'n log n'"):
        Order.parse("n!")


class Work(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.inner = forward

    def forward(self, x):
        return self.inner(x)


WORK = {
    "token by token": (lambda x: torch.relu(x) * 2, "n"),
    "linear": (lambda x: x @ torch.ones(8, 4), "n"),
    "scores": (lambda x: x @ x.mT, "n^2"),
    "features": (lambda x: x.mT @ x, "n"),
    "transform": (lambda x: torch.fft.irfft(torch.fft.rfft(x, n=64, dim=1), dim=1), "n log n"),
    "transform of the length": (lambda x: torch.fft.rfft(x, dim=1).abs(), "n log n"),
    "fused attention": (lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]), "n^2"),
    "sum over pairs": (lambda x: (x[:, :, None] - x[:, None]).sum(1), "n^2"),
    "a convolution as long as the sequence": (
        lambda x: F.conv1d(x.mT[:1], x.mT[:1], padding=x.shape[1] - 1),
        "n^2",
    ),
    "chosen rows": (lambda x: torch.relu(x[x[:, 0, 0] > 0]), "n"),
    "chosen tokens": (lambda x: torch.relu(x[x[..., 0] > 0]), "n"),
    "pairs of chosen tokens": (lambda x: (y := x[x[..., 0] > 0]) @ y.mT, "n^2"),
    "chosen pairs": (lambda x: (y := x @ x.mT)[y > 0].relu(), "n^2"),
    "einsum": (lambda x: torch.einsum("btc,bsc->bts", x, x), "n^2"),
}


@pytest.mark.parametrize("name", WORK)
def test_the_work_of_graphs(name):
    forward, expected = WORK[name]
    program = capture(Work(forward), (torch.randn(2, 12, 8),))
    grown = growth_of(program)
    assert str(grown.order) == expected
    assert all(node.worst == grown.order for node in grown.to_blame())
    assert grown.unknown == ()


def test_the_batch_counts_nothing_and_nodes_tell_their_shape():
    program = capture(Work(lambda x: x[:, None] * x[None]), (torch.randn(2, 12),))
    grown = growth_of(program)
    assert str(grown.order) == "n"
    assert grown.to_blame()[-1].shape.count(",") == 2
    assert str(growth_of(program, length=program.batch).order) == "n^2"


def test_what_has_no_recorded_value_is_unknown():
    program = capture(Work(torch.relu), (torch.randn(2, 12),))
    (relu,) = [node for node in program.graph.nodes if node.op == "call_function"]
    del relu.meta["val"]
    assert growth_of(program).unknown == ("relu",)


def test_modules_tell_their_own_growth():
    program = capture(nn.Sequential(nn.Dropout(0.5)), (torch.randn(2, 12),))
    assert str(growth_of(program).order) == "n"
    assert str(growth_of(program, inside=lambda module, node: Order(2)).order) == "n^2"
