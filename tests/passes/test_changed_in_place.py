"""Operands that are changed in place while an attention is made."""

import pytest
import torch.nn.functional as F
from near import Near, causal, kept_exact, scored, softmax


def changed(name, change, grouped=False):
    """One attention over operands that are changed in place while it is made, and one over what they are then."""

    def mix(q, k, v, x, s):
        operands = {"query": q, "key": k, "value": v, "mask": causal(x, -9.0)}
        if grouped:
            result = (k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
            change(operands[name])
            return F.scaled_dot_product_attention(q, *result), softmax(scored(q[:, :2], k), -1) @ v
        scores = scored(q, k) + operands["mask"]
        change(operands[name])
        return softmax(scores, -1) @ v, softmax(scored(q, k) + operands["mask"], -1) @ v

    return Near(mix, heads=4 if grouped else 2)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", ["query", "key", "value", "mask"])
def test_an_operand_that_is_changed_in_between_is_named_with_the_write(name, grouped):
    if grouped and name in ("query", "mask"):
        pytest.skip("the fused operator reads them itself")
    sites = kept_exact(changed(name, lambda operand: operand[..., 0].mul_(2.0), grouped))
    if name == "value" and not grouped:  # not read before the change
        assert all(site.spec is not None for site in sites)
        return
    (missed,) = [site for site in sites if site.spec is None]
    assert f"the {name}, " in missed.reason
    assert "is changed in place by aten.mul_ after the attention read it" in missed.reason
