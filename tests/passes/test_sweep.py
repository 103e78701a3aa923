"""Nothing quadratic and nothing unused is left."""

import torch

from remixer import SoftmaxConfig
from remixer.passes.pipelines import replacement
from remixer.passes.prove_growth import growth
from remixer.passes.select import Selection
from remixer.passes.sweep import Sweep
from remixer.rewrite.capture import capture


def masked(T, keep, model):
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    seen = causal & keep[:, None, None, :]
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)


def test_the_mask_goes_with_the_attention(one_attention, recognised):
    def mix(q, k, v, mask, model):
        return torch.softmax((q @ k.mT) * 0.3 + mask, -1) @ v

    result, _ = recognised(one_attention(masked, mix))
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    blamed = {node.node for node in growth(small.program).to_blame()}
    assert blamed == {"mixer"}  # the exact attention itself, and nothing of the mask
    assert small.nodes[1] < small.nodes[0]


def test_a_program_without_leftovers_is_not_modified():
    program = capture(torch.nn.Linear(4, 4), (torch.randn(2, 4),))
    assert not Sweep()(program).modified
