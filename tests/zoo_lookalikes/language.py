"""What attention of language models is checked with."""

import torch

WIDTH, HEADS, SIZE = 32, 4, 8
SCALE = SIZE**-0.5
PLAIN = {
    "heads": HEADS, "kv_heads": HEADS, "head_dim": SIZE, "value_dim": SIZE, "causal": False, "windowed": False,
    "padding": False, "bias": "none", "softcap": None, "cross": False, "scale": SCALE,
}  # fmt: skip
CAUSAL = {**PLAIN, "causal": True}
LOWEST = torch.finfo(torch.float32).min


def tokens(batch, length):
    return {"x": torch.randn(batch, length, WIDTH)}


def length_first(batch, length):
    return {"x": torch.randn(length, batch, WIDTH)}


def padded(batch, length):
    keep = torch.ones(batch, length, dtype=torch.bool)
    keep[0, length // 2 + 1 :] = False
    return {**tokens(batch, length), "keep": keep}


def split(x, heads=HEADS):
    return x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)  # what rearrange 'b n (h d) -> b h n d' does


def merged(x):
    return x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)
