"""A small encoder or decoder as people write them, with a mask."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden, mask):
        query, key, value = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(hidden).chunk(3, -1)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        seen = mask[:, None, None, :]
        if self.causal:
            place = torch.arange(hidden.shape[1], device=hidden.device)
            seen = seen & (place <= place[:, None])
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        mixed = torch.softmax(scores, -1) @ value
        hidden = self.first(hidden + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.second(hidden + self.down(F.gelu(self.up(hidden))))


class Model(nn.Module):
    def __init__(self, width=32, heads=4, layers=2, causal=False):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(layers))

    def forward(self, ids, mask):
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden, mask.bool())
        return {"hidden": hidden, "mean": hidden.mean(1)}


def inputs(T=20, B=2):
    torch.manual_seed(T)
    return {"ids": torch.randint(0, 50, (B, T)), "mask": torch.ones(B, T, dtype=torch.long)}
