"""Small models that commands load by module:function."""

import torch
from torch import nn
from torch.nn import functional as F


def encoder():
    """With its inputs."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return layer, torch.randn(2, 9, 32)


def encoder_alone():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)


class Vit(nn.Module):
    image_size = 16

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, image):
        return self.layer(self.patches(image).flatten(2).mT)


class Decoder(nn.Module):
    """One causal attention, positions by a table of 100."""

    def __init__(self, attentions=1):
        super().__init__()
        self.words, self.places = nn.Embedding(60, 32), nn.Embedding(100, 32)
        self.mixing = nn.ModuleList(nn.Linear(32, 96) for _ in range(attentions))
        self.head = nn.Linear(32, 60)

    def forward(self, ids):
        hidden = self.words(ids) + self.places.weight[: ids.shape[1]]
        for each in self.mixing:
            q, k, v = (part.unflatten(2, (4, 8)).transpose(1, 2) for part in each(hidden).chunk(3, 2))
            hidden = hidden + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(hidden)


class TwoDimensional(nn.Module):
    """Nobody knows what it takes."""

    def forward(self, spectrum, mapping):
        return mapping[spectrum]


def decoder():
    return Decoder()


def two_attentions():
    return Decoder(2)


def vit():
    return Vit()


def mystery():
    return TwoDimensional()


def no_attention():
    return nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 4, 8)


class Crossing(nn.Module):
    """Queries and keys of two lengths."""

    def __init__(self):
        super().__init__()
        self.mixing = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x, memory):
        return self.mixing(x, memory, memory, need_weights=False)[0]


def crossing():
    return Crossing(), (torch.randn(2, 7, 32), torch.randn(2, 9, 32))


def rewritten():
    import remixer

    model, x = encoder()
    return remixer.remix(model, "toeplitz", (x,))


def number():
    return 3


def broken():
    raise RuntimeError("no weights today")
