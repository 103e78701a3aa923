import gc

import pytest
import torch
from torch import nn

from remixer.passes.fused_attention import FusedAttention
from remixer.testing import TOLERANCE, assert_close, assert_rewrites, assert_sites, peak_memory


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_every_comparison_can_fail(dtype):
    expected = torch.randn(50).to(dtype)
    assert_close(expected.clone(), expected)
    limit = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(expected.double() + 3 * limit, expected.double() if dtype is torch.float64 else expected)


def test_nan_agrees_with_nothing():
    with pytest.raises(AssertionError, match="largest error nan"):
        assert_close(torch.tensor([torch.nan]), torch.tensor([1.0]))


def test_structures_shapes_and_other_values_are_compared():
    with pytest.raises(AssertionError, match="different structures"):
        assert_close({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(AssertionError, match=r"got shape \(1,\), expected \(2,\)"):
        assert_close(torch.ones(1), torch.ones(2))
    with pytest.raises(AssertionError, match="values differ"):
        assert_close(torch.tensor([1]), torch.tensor([2]))
    with pytest.raises(AssertionError, match="got 1, expected 2 in output 1"):
        assert_close((torch.ones(1), 1), (torch.ones(1), 2))


def test_only_the_entries_asked_for_are_compared():
    where = torch.tensor([True, False])
    assert_close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 9.0]), where=where)


def test_assert_sites_says_what_there_is():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    with pytest.raises(AssertionError, match="1 attentions were understood, expected 2"):
        assert_sites(layer, torch.zeros(2, 8, 32), 2)
    with pytest.raises(AssertionError, match="has heads = 4, expected 8"):
        assert_sites(layer, torch.zeros(2, 8, 32), 1, heads=8)


class Fused(nn.Module):
    def forward(self, x):
        q, k, v = x.unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_assert_rewrites_counts_and_compares_graphs():
    inputs = torch.randn(2, 9, 96)
    result = assert_rewrites(Fused(), None, FusedAttention(), times=1, inputs=inputs)
    assert result.modified
    with pytest.raises(AssertionError, match="1 rewrites, expected 2"):
        assert_rewrites(Fused(), None, FusedAttention(), times=2, inputs=inputs)
    with pytest.raises(AssertionError, match="the graphs differ"):
        assert_rewrites(Fused(), Fused(), FusedAttention(), inputs=inputs)
    with pytest.raises(AssertionError, match="no miss says 'nonsense'"):
        assert_rewrites(Fused(), None, FusedAttention(), inputs=inputs, misses="nonsense")


def test_what_earlier_runs_left_behind_is_not_taken_off_the_peak():
    class Circular(nn.Module):
        """Refers to itself, as graph modules do: only Python's collector frees what a copy of it keeps."""

        kept = None

        def forward(self, x):
            self.me = [self]
            if self.kept is None:
                self.kept = torch.zeros(1000)
            y = x + 1
            if gc.isenabled():  # then Python may do so at any time
                gc.collect()
            return y * 2

    x = torch.zeros(500)
    assert gc.isenabled()
    first, second = (peak_memory(Circular(), x) for _ in range(2))
    assert first == second
    assert gc.isenabled()


def test_peak_memory_is_what_is_held_at_once_and_nothing_of_earlier_runs():
    class Table(nn.Module):
        kept = None

        def forward(self, x, twice=False):
            if self.kept is None:
                self.kept = torch.zeros(1000)
            y = x + 1
            return y * 2 if twice else y

    model, x = Table(), torch.zeros(500)
    model(x)
    for held, found in [
        (1500, peak_memory(Table(), x)),
        (500, peak_memory(model, x)),
        (500, peak_memory(model, x)),
        (1000, peak_memory(model, x, twice=True)),
    ]:
        assert found == pytest.approx(4 * held, abs=64)  # numbers are tensors too
