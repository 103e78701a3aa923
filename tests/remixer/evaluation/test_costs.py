import time

import pytest
import torch
from torch import nn

from remixer.evaluation import EvaluationError, cost, memory


def inputs_at(length):
    return torch.zeros(1, length, 8)


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.calls = nn.Dropout(0.5), []

    def forward(self, x):
        self.calls.append((x.shape[1], self.training, torch.is_grad_enabled()))
        time.sleep(0.02 if x.shape[1] > 10 else 0.0)
        return x


def test_longer_passes_take_longer_and_are_made_as_often_as_said():
    model = Slow().train()
    short, long = cost(model, inputs_at, [4, 16], runs=2)
    assert (short.length, long.length) == (4, 16)
    assert short.seconds < 0.02 <= long.seconds
    assert model.calls == 4 * [(4, False, False)] + 4 * [(16, False, False)]
    assert model.training


def test_memory_is_what_a_pass_holds_at_most():
    def model(x):
        return torch.ones(x.shape[1], 2**20).sum()

    small, large = (each.bytes for each in cost(model, inputs_at, [4, 32], runs=1))
    if small is None:
        pytest.skip("this kernel doesn't tell")
    assert 12 * 2**20 < small < 24 * 2**20
    assert 120 * 2**20 < large < 144 * 2**20


def test_where_the_kernel_tells_nothing_memory_is_none(monkeypatch):
    monkeypatch.setattr(memory.Path, "exists", lambda path: False)
    (found,) = cost(nn.Identity(), inputs_at, [4], runs=1)
    assert found.bytes is None


def test_wrong_lengths_and_runs_are_refused():
    for lengths in ([], [4, 0]):
        with pytest.raises(EvaluationError, match="lengths must be"):
            cost(nn.Identity(), inputs_at, lengths)
    with pytest.raises(EvaluationError, match="runs must be 1 or more"):
        cost(nn.Identity(), inputs_at, [4], runs=0)
    with pytest.raises(EvaluationError, match="the inputs don't fit Identity"):
        cost(nn.Identity(), lambda length: {"x": torch.zeros(length)}, [4])
