"""Einsums that are matrix products, in every order of labels, and those that are none."""

import pytest
import torch
from torch import nn

from remixer.passes.einsum_to_matmul import Contraction, EinsumToMatmul
from remixer.rewrite.capture import capture
from remixer.testing import assert_close

PRODUCTS = {
    "b h i d, b h j d -> b h i j": ((2, 3, 5, 4), (2, 3, 5, 4)),
    "bhij,bhjd->bhid": ((2, 3, 5, 5), (2, 3, 5, 4)),
    "bhid,bjd->bhij": ((2, 3, 5, 4), (2, 5, 4)),
    "bhij,bjd->bhid": ((2, 3, 5, 5), (2, 5, 4)),
    "ibhd,jbhd->bhij": ((5, 2, 3, 4), (5, 2, 3, 4)),
    "bqhd,bkhd->bhqk": ((2, 5, 3, 4), (2, 5, 3, 4)),
    "bjd,bhid->bhij": ((2, 5, 4), (2, 3, 5, 4)),
    "bhij,bjhd->bihd": ((2, 3, 5, 5), (2, 5, 3, 4)),
    "ibnd,jbnd->bnij": ((5, 2, 3, 4), (5, 2, 3, 4)),
    "bnij,jbnd->ibnd": ((2, 3, 5, 5), (5, 2, 3, 4)),
    "bid,bjd->bij": ((2, 5, 4), (2, 5, 4)),
}
OTHERS = {
    "bhid,bhjd->bhi": ((2, 3, 5, 4), (2, 3, 5, 4)),
    "bhid,bhid->bhid": ((2, 3, 5, 4), (2, 3, 5, 4)),
    "bijd,bijd->bij": ((2, 5, 5, 4), (2, 5, 5, 4)),
    "bii,bij->bij": ((2, 5, 5), (2, 5, 5)),
}


class Contracted(nn.Module):
    def __init__(self, equation):
        super().__init__()
        self.equation = equation

    def forward(self, a, b):
        return torch.einsum(self.equation, a, b)


def rewritten(equation, shapes):
    operands = [torch.randn(shape) for shape in shapes]
    model = Contracted(equation)
    result = EinsumToMatmul()(capture(model, tuple(operands)))
    assert_close(result.graph_module(*operands), model(*operands))
    return [str(node.target) for node in result.program.graph.nodes if node.op == "call_function"], result


@pytest.mark.parametrize("equation", PRODUCTS)
def test_a_product_becomes_one(equation):
    targets, result = rewritten(equation, PRODUCTS[equation])
    assert "aten.matmul.default" in targets
    assert "aten.einsum.default" not in targets
    assert len(result.rewrites) == 1


@pytest.mark.parametrize("equation", OTHERS)
def test_others_stay(equation):
    targets, result = rewritten(equation, OTHERS[equation])
    assert "aten.einsum.default" in targets
    assert not result.modified


def test_what_is_no_product():
    assert Contraction.of("ij", "jk", "ik") is None
    assert Contraction.of("bij", "bjkl", "bik") is None
    assert Contraction.of("bijd", "bjkd", "bik") is None
