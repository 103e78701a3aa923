"""Attention as libraries of language models spell it: products, rotary positions, masks."""

import pytest
import torch
import torch.nn.functional as F
from language import CAUSAL, HEADS, LOWEST, PLAIN, SCALE, SIZE, WIDTH, length_first, merged, padded, split, tokens
from torch import nn


class Chunked(nn.Module):
    """to_qkv in three chunks, heads by rearrange."""

    def __init__(self):
        super().__init__()
        self.to_qkv, self.dropout = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Dropout(0.1)
        self.norm, self.to_out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = map(split, self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        attn = self.dropout((torch.matmul(q, k.transpose(-1, -2)) * SCALE).softmax(-1))
        return self.to_out(merged(torch.matmul(attn, v)))


def rotate_half(x):
    one, two = x.chunk(2, -1)
    return torch.cat((-two, one), -1)


def rotate_every_two(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


class Einsum(nn.Module):
    """Products by einsum; one or several heads of keys; rotary positions; ALiBi; heads that talk."""

    def __init__(self, causal=False, rotary=False, alibi=False, kv_heads=HEADS, talking=False):
        super().__init__()
        self.causal, self.kv_heads, self.rotary, self.alibi = causal, kv_heads, rotary, alibi
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k, self.to_v = (nn.Linear(WIDTH, kv_heads * SIZE, bias=False) for _ in range(2))
        self.talking = nn.Conv2d(HEADS, HEADS, 1, bias=False) if talking else None
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, SIZE, 2) / SIZE), persistent=False)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, HEADS + 1).view(HEADS, 1, 1), persistent=False)

    def forward(self, x, keep=None):
        n = x.shape[1]
        q, k, v = split(self.to_q(x)), self.to_k(x), self.to_v(x)
        kv = "b h j d" if self.kv_heads > 1 else "b j d"
        if self.kv_heads > 1:
            k, v = split(k), split(v)
        if self.rotary:
            freqs = torch.einsum("i , j -> i j", torch.arange(n).type_as(self.inv_freq), self.inv_freq)
            freqs = torch.cat((freqs, freqs), -1)
            q, k = (t * freqs.cos() + rotate_half(t) * freqs.sin() for t in (q, k))
        dots = torch.einsum(f"b h i d, {kv} -> b h i j", q, k) * SCALE
        if self.alibi:
            i, j = torch.arange(n), torch.arange(n)
            dots = dots + -(j[None, None, :] - i[None, :, None]).abs() * self.slopes
        if self.talking is not None:
            dots = self.talking(dots)
        if keep is not None:
            dots = dots.masked_fill(~keep[:, None, None, :], LOWEST)
        if self.causal:
            dots = dots.masked_fill(torch.ones((n, n), dtype=torch.bool).triu(1), LOWEST)
        attn = dots.softmax(-1, dtype=torch.float32).type(dots.dtype)
        return merged(torch.einsum(f"b h i j, {kv} -> b h i d", attn, v))


class TwoFills(nn.Module):
    """Future and padding are filled in one after the other, with the same number."""

    def __init__(self, hidden):
        super().__init__()
        self.qkv, self.hidden = nn.Linear(WIDTH, 3 * WIDTH), hidden

    def forward(self, x, keep):
        q, k, v = map(split, self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * SCALE
        scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), self.hidden)
        scores = scores.masked_fill(~keep[:, None, None, :], self.hidden)
        return merged(scores.softmax(-1) @ v)


class TimeBatch(nn.Module):
    """(T, B, C) with heads folded into the batch, and bmm."""

    def __init__(self, causal=False):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.causal = causal

    def forward(self, x, drop=None):
        T, B, C = x.shape
        q = self.q_proj(x) * SCALE
        q, k, v = (
            t.contiguous().view(-1, B * HEADS, SIZE).transpose(0, 1) for t in (q, self.k_proj(x), self.v_proj(x))
        )
        scores = torch.bmm(q, k.transpose(1, 2))
        if self.causal:
            scores = scores + torch.triu(torch.full((T, T), -torch.inf), 1).unsqueeze(0)
        if drop is not None:
            scores = scores.view(B, HEADS, T, T)
            scores = scores.masked_fill(drop.unsqueeze(1).unsqueeze(2).to(torch.bool), float("-inf"))
            scores = scores.view(B * HEADS, T, T)
        weights = F.softmax(scores, -1, dtype=torch.float32).type_as(scores)
        return torch.bmm(weights, v).transpose(0, 1).contiguous().view(T, B, C)


def dropped(batch, length):
    return {**length_first(batch, length), "drop": ~padded(batch, length)["keep"]}


class Rotary(nn.Module):
    """Rotary positions of some or all features, in halves or interleaved, counted or given."""

    def __init__(self, rotated=SIZE, interleaved=False, given=False, tensor_scale=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.rotated, self.interleaved, self.given = rotated, interleaved, given
        angles = torch.arange(64)[:, None] * 1e4 ** (-torch.arange(0, rotated, 2) / rotated)
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64, dtype=torch.bool))[None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SIZE**0.5) if tensor_scale else None, persistent=False)

    def rotate(self, x, angles):
        turned, rest = x[..., : self.rotated], x[..., self.rotated :]
        if self.interleaved:
            sin, cos = (t.repeat_interleave(2, -1)[:, None] for t in (angles.sin(), angles.cos()))
            turned = turned * cos + rotate_every_two(turned) * sin
        else:
            sin, cos = (torch.cat((t, t), -1)[:, None] for t in (angles.sin(), angles.cos()))
            turned = turned * cos + rotate_half(turned) * sin
        return torch.cat((turned, rest), -1) if self.rotated < SIZE else turned

    def forward(self, x, positions=None):
        T = x.shape[1]
        angles = self.angles[positions if self.given else torch.arange(T)[None]]
        q, k = (self.rotate(split(layer(x)), angles) for layer in (self.q, self.k))
        weights = q @ k.transpose(-1, -2)
        weights = weights / (SIZE**0.5 if self.scale is None else self.scale)
        weights = torch.where(self.bias[:, :, :T, :T], weights, torch.tensor(LOWEST, dtype=weights.dtype))
        return merged(F.softmax(weights, -1) @ split(self.v(x)))


def with_positions(batch, length):
    return {**tokens(batch, length), "positions": torch.randint(0, 60, (batch, length))}


SPELLINGS = {
    "chunks": (Chunked(), tokens, {**PLAIN, "dropout": 0.1}),
    "einsum": (Einsum(), tokens, PLAIN),
    "einsum, causal": (Einsum(causal=True), tokens, CAUSAL),
    "einsum, causal, padded": (Einsum(causal=True), padded, {**CAUSAL, "padding": True}),
    "einsum, rotary": (Einsum(causal=True, rotary=True), tokens, CAUSAL),
    "einsum, slopes": (Einsum(alibi=True), tokens, {**PLAIN, "bias": "offset"}),
    "einsum, causal, slopes": (Einsum(causal=True, alibi=True), tokens, {**CAUSAL, "bias": "offset"}),
    "einsum, one head of keys": (Einsum(causal=True, kv_heads=1), padded, {**CAUSAL, "kv_heads": 1, "padding": True}),
    "length first": (TimeBatch(), length_first, {**PLAIN, "scale": 1.0}),
    "length first, causal": (TimeBatch(causal=True), length_first, {**CAUSAL, "scale": 1.0}),
    "length first, padded": (TimeBatch(), dropped, {**PLAIN, "scale": 1.0, "padding": True}),
    "two fills of the lowest number": (TwoFills(LOWEST), padded, {**CAUSAL, "padding": True}),
    "two fills of -1e9": (TwoFills(-1e9), padded, {**CAUSAL, "padding": True}),
    "two fills of -inf": (TwoFills(-torch.inf), padded, {**CAUSAL, "padding": True}),
    "rotary": (Rotary(), tokens, CAUSAL),
    "rotary, interleaved": (Rotary(interleaved=True), tokens, CAUSAL),
    "rotary, of some features": (Rotary(rotated=4), tokens, CAUSAL),
    "rotary, positions given": (Rotary(given=True), with_positions, CAUSAL),
    "rotary, the scale in a buffer": (Rotary(rotated=4, interleaved=True, tensor_scale=True), tokens, CAUSAL),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name, recognised):
    model, inputs, spec = SPELLINGS[name]
    recognised(model, inputs, 1, spec)


def test_heads_that_talk_are_kept(kept):
    kept(Einsum(talking=True), tokens, 1, "conv2d")
