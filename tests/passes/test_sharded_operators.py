"""Operators on hidden states (B, T, C) whose tokens are spread: each stays spread, or gets all tokens, and is right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import remixer
from remixer.passes.prove_sharding import prove_sharding
from remixer.passes.shard_sequence import ShardSequence
from remixer.rewrite.program import Program

SPREAD = {
    "pointwise": lambda h: torch.where(h > 0, h, 0.1 * h) * torch.sigmoid(h),
    "transposed": lambda h: h.transpose(1, 2).relu().transpose(1, 2),
    "permuted": lambda h: h.permute(1, 0, 2).tanh().permute(1, 0, 2),
    "unsqueezed": lambda h: h.unsqueeze(1).expand(-1, 3, -1, -1).sum(1),
    "squeezed": lambda h: h[:, None].squeeze(1),
    "joined": lambda h: torch.cat([h[..., :16], h], -1)[..., :32],
    "stacked": lambda h: torch.stack([h, 2 * h], 1).mean(1),
    "padded": lambda h: F.pad(h, (1, 2))[..., :32],
    "split": lambda h: torch.cat(h.split(8, -1)[::-1], -1),
    "unbound": lambda h: sum(h.unflatten(-1, (2, 16)).unbind(2)).repeat(1, 1, 2),
    "gated": lambda h: F.glu(torch.cat([h, h], -1)),
    "largest": lambda h: h - h.amax(-1, keepdim=True),
    "normed": lambda h: F.rms_norm(h, (32,)) / (1 + torch.linalg.vector_norm(h, dim=-1, keepdim=True)),
    "sorted": lambda h: h.sort(-1).values,
    "best": lambda h: h + h.topk(3, -1).values.sum(-1, keepdim=True),
    "flipped": lambda h: h.flip(-1),
    "softmax": lambda h: h * h.softmax(-1),
    "every other": lambda h: h[..., ::2].repeat(1, 1, 2),
    "merged with rows": lambda h: F.layer_norm(h.flatten(0, 1), (32,)).view(h.shape),
    "product": lambda h: h @ torch.linspace(-1, 1, 1024).view(32, 32),
    "product with itself": lambda h: (h.unsqueeze(-1) @ h.unsqueeze(-2)).sum(-1),
    "a table of places": lambda h: h + torch.arange(h.shape[1]).float()[:, None],
    "dropout": lambda h: F.dropout(h, 0.5, False),
}
GATHERED = {
    "running sum": lambda h: h.cumsum(1),
    "flipped tokens": lambda h: h.flip(1),
    "rolled": lambda h: h + h.roll(1, 1),
    "convolution": lambda h: F.conv1d(h.transpose(1, 2), torch.ones(32, 1, 3), padding=1, groups=32).transpose(1, 2),
    "normed over tokens": lambda h: h * h.softmax(1),
    "products of tokens": lambda h: 0.01 * (h @ h.transpose(1, 2)) @ h,
    "shifted": lambda h: torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1),
    "largest of tokens": lambda h: h - h.amax(1, keepdim=True),
}


def program_of(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.qkv, self.out = nn.Embedding(50, 32), nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, ids):
            hidden = function(self.tokens(ids))
            query, key, value = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in self.qkv(hidden).chunk(3, -1))
            mixed = F.scaled_dot_product_attention(query, key, value)
            return hidden + self.out(mixed.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    return Program.of(remixer.remix(Model().eval(), "softmax", torch.randint(0, 50, (2, 12))))


@pytest.mark.parametrize("name", [*SPREAD, *GATHERED])
def test_it_is_right(name):
    program = program_of((SPREAD | GATHERED)[name])
    result = ShardSequence("all_gather")(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert bool(result.misses) == (name in GATHERED), result.misses
