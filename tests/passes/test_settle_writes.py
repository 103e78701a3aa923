"""Tensors that are put together by writes are read through one node behind the last."""

import torch
import torch.nn.functional as F

from remixer.passes.settle_writes import SettleWrites
from remixer.rewrite.capture import capture
from remixer.testing import assert_close


def joined(q, k, v, mask, model):
    """The key as some decoders make it, half of it the same for all heads."""
    key = k.new_empty(k.shape)
    key[..., :4] = k[..., :4]
    key[..., 4:] = k[:, :1, :, 4:]
    return F.scaled_dot_product_attention(q, key, v)


def test_a_key_that_is_put_together_is_a_node(one_attention, recognised):
    model = one_attention(mix=joined)
    result, (site,) = recognised(model)
    assert result.misses == ()
    assert site.record.error is not None
    for shape in ((2, 9, 16), (1, 1, 16), (3, 37, 16)):
        x = torch.randn(shape)
        assert_close(result.graph_module(x), model(x))


def test_a_mask_of_which_a_copy_gets_the_padding_written_in(one_attention, recognised):
    def written(T, keep, model):
        seen = torch.full((T, T), torch.finfo(torch.float32).min).triu(1)
        mask = seen[None, None].expand(keep.shape[0], 1, T, T).clone()
        hidden = (mask + keep[:, None, None, :]) == 0
        mask[:, :, :, :T] = mask.masked_fill(hidden, torch.finfo(torch.float32).min)
        return mask

    def added(q, k, v, mask, model):
        return (q @ k.mT + mask).softmax(-1) @ v

    result, (site,) = recognised(one_attention(mask=written, mix=added))
    assert result.misses == ()
    assert site.record.error is not None
    assert (site.spec.causal, site.spec.padding, site.spec.bias) == (True, True, "none")


def test_readers_before_the_last_write_stay(one_attention):
    def early(q, k, v, mask, model):
        total = k.new_zeros(k.shape)
        before = (total + 2.0).sum()
        total[..., :4] = k[..., 4:]
        return total * before + total

    model = one_attention(mix=early)
    result = SettleWrites()(capture(model, (torch.randn(2, 9, 16),)))
    copies = [node for node in result.program.graph.nodes if "origin" in node.meta]
    assert len(copies) == 1
    x = torch.randn(3, 5, 16)
    assert_close(result.graph_module(x), model(x))


def test_what_was_computed_and_changed_stays(one_attention):
    def changed(q, k, v, mask, model):
        total = k * 2.0
        total[..., :4] = 1.0
        return total

    result = SettleWrites()(capture(one_attention(mix=changed), (torch.randn(2, 9, 16),)))
    assert not result.modified


def test_nothing_written_nothing_changed(one_attention):
    result = SettleWrites()(capture(one_attention(), (torch.randn(2, 9, 16),)))
    assert not result.modified
