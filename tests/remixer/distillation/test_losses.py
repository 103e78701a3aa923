"""Losses of transfer beside plain forms of them."""

import pytest
import torch
import torch.nn.functional as F

from remixer.distillation import losses


def plain_divergence(given, right, exist):
    rows = F.kl_div(given.log_softmax(-1), right.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    return (rows * exist).sum() / exist.sum()


@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("in_cache", [1, 100, 2**19])
def test_the_divergence_of_likely_and_of_hopeless_tokens(spread, in_cache, monkeypatch):
    monkeypatch.setattr(losses, "IN_CACHE", in_cache)
    generator = torch.Generator().manual_seed(0)
    right = spread * torch.randn(2, 7, 33, generator=generator, dtype=torch.float64)
    given = (right + torch.randn(2, 7, 33, generator=generator, dtype=torch.float64)).requires_grad_()
    exist = torch.ones(2, 7, dtype=torch.bool)
    exist[1, :3] = False
    wanted = plain_divergence(given, right, exist)
    (slope,) = torch.autograd.grad(wanted, given)
    own = given.detach().float().requires_grad_()
    found = losses.divergence({"logits": own}, {"logits": right.float()}, exist)
    (2.0 * found).backward()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.grad.double(), 2.0 * slope, rtol=1e-4, atol=1e-6)


def test_a_token_taken_for_impossible_costs_what_it_should():
    right, given = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, -500.0]]], requires_grad=True)
    found = losses.divergence({"logits": given}, {"logits": right}, None)
    found.backward()
    torch.testing.assert_close(found, plain_divergence(given.double(), right.double(), torch.ones(1, 1)).float())
    torch.testing.assert_close(given.grad, torch.tensor([[[0.5, -0.5]]]))


def test_no_gradient_is_too_small_for_a_normal_number():
    given, right = (100.0 * torch.randn(1, 5, 1000) for _ in range(2))
    given.requires_grad_()
    losses.divergence({"logits": given}, {"logits": right}, None).backward()
    there = given.grad[given.grad != 0.0].abs()
    assert len(there)
    assert there.min() > 1e3 * torch.finfo(torch.float32).tiny


def test_low_precision_and_rows_of_one_token():
    given, right = (torch.randn(1, 1, 9, dtype=torch.bfloat16) for _ in range(2))
    given.requires_grad_()
    found = losses.divergence({"logits": given}, {"logits": right}, None)
    found.backward()
    assert found.dtype == torch.float32
    assert given.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain_divergence(given.float(), right.float(), torch.ones(1, 1)))


@pytest.mark.parametrize(
    ("loss", "name", "faster"),
    [
        ("auto", "logits", False),
        ("auto", "last_hidden_state", True),
        ("logits", "", False),
        ("states", "", True),
        ("mean", "", True),
        (lambda outputs, wanted, exist: outputs.sum(), "last_hidden_state", False),
    ],
)
def test_states_teach_faster_than_logits_and_unknown_losses(loss, name, faster):
    outputs = {name: torch.ones(1, 1, 1)}
    assert (losses.pace(losses.loss_of(loss), outputs) > 1.0) == faster
