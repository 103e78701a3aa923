"""Attention as libraries of language models spell it: fused projections, whole models."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from language import CAUSAL, HEADS, SIZE, WIDTH, merged, split, tokens
from torch import nn


class Split(nn.Module):
    """c_attn split into three; a buffer of the whole context as the causal mask, or the fused operator."""

    def __init__(self, flash):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_dropout, self.flash = nn.Dropout(0.2), flash
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(WIDTH, dim=2)
        k = k.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        q = q.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        v = v.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        if self.flash:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=None, dropout_p=0.2 if self.training else 0, is_causal=True
            )
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Language(nn.Module):
    """The whole of such a model: tied embeddings, positions, logits of the last token."""

    def __init__(self, flash):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, WIDTH), nn.Embedding(64, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.layers = nn.ModuleList(Split(flash) for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, 50, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(0, idx.shape[1], dtype=torch.long, device=idx.device))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.lm_head(x[:, [-1], :])


@pytest.mark.parametrize("flash", [False, True])
def test_whole_language_model(flash, recognised):
    def ids(batch, length):
        return {"idx": torch.randint(50, (batch, length))}

    recognised(Language(flash), ids, 2, {**CAUSAL, "dropout": 0.2})


class Laid(nn.Module):
    """One layer for query, key and value, laid out in any way; `parts` gives them as (B, H, T, D)."""

    def __init__(self, parts, kv_heads=HEADS):
        super().__init__()
        self.qkv, self.parts = nn.Linear(WIDTH, WIDTH + 2 * kv_heads * SIZE), parts

    def forward(self, x):
        q, k, v = self.parts(self.qkv(x))
        return merged(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def by_head(qkv):
    return (t.transpose(1, 2) for t in qkv.view(*qkv.shape[:2], HEADS, 3 * SIZE).chunk(3, -1))


def by_select(qkv):
    qkv = qkv.view(*qkv.shape[:2], HEADS, 3, SIZE)
    return (qkv[..., i, :].transpose(1, 2) for i in range(3))


def by_slices(qkv):
    sizes = (0, WIDTH, WIDTH + 2 * SIZE, WIDTH + 4 * SIZE)
    q, k, v = (qkv[..., a:b] for a, b in itertools.pairwise(sizes))
    return split(q), split(k, 2).repeat_interleave(2, 1), split(v, 2).repeat_interleave(2, 1)


def by_group(qkv):
    """Each group of 2 query heads with the key and value that they share."""
    qkv = qkv.view(*qkv.shape[:2], 2, 4, SIZE)
    q, k, v = qkv[..., :-2, :], qkv[..., [-2], :], qkv[..., [-1], :]
    k, v = (t.expand(-1, -1, -1, 2, -1) for t in (k, v))
    return (t.flatten(2, 3).transpose(1, 2) for t in (q, k, v))


LAID = {
    "unbind": (lambda t: t.view(*t.shape[:2], 3, HEADS, SIZE).unbind(2), HEADS),
    "unbind of heads first": (lambda t: t.view(*t.shape[:2], 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0), HEADS),
    "chunks of a head": (by_head, HEADS),
    "a view and an index": (by_select, HEADS),
    "split in sizes": (lambda t: map(split, t.split([WIDTH, WIDTH, WIDTH], -1)), HEADS),
    "slices, grouped": (by_slices, 2),
}


@pytest.mark.parametrize("name", LAID)
def test_one_layer_for_query_key_and_value(name, recognised):
    parts, kv_heads = LAID[name]
    if name == "unbind":
        laid = Laid(lambda t: (p.transpose(1, 2) for p in parts(t)), kv_heads)
    else:
        laid = Laid(parts, kv_heads)
    recognised(laid, tokens, 1, {**CAUSAL, "kv_heads": kv_heads, "source_dim": WIDTH})


def test_heads_in_groups_with_their_key(recognised):
    recognised(Laid(by_group, 2), tokens, 1, {**CAUSAL, "kv_heads": 2, "source_dim": WIDTH})
