"""Attention as image libraries spell it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, SIZE = 24, 3, 8
PLAIN = {
    "heads": HEADS, "kv_heads": HEADS, "head_dim": SIZE, "value_dim": SIZE, "causal": False, "windowed": False,
    "padding": False, "bias": "none", "softcap": None, "cross": False,
}  # fmt: skip


def tokens(batch, length):
    return {"x": torch.randn(batch, length, WIDTH)}


class Fused(nn.Module):
    """One linear layer for query, key and value; norms of the heads; two forms of the product."""

    def __init__(self, fused, norm=False, bias=True, dropout=0.0):
        super().__init__()
        self.fused, self.scale = fused, SIZE**-0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=bias), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = (nn.LayerNorm(SIZE) if norm else nn.Identity() for _ in range(2))
        self.attn_drop, self.proj_drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = self.attn_drop(attn.softmax(dim=-1))
            x = attn @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(B, N, C)))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_one_layer_for_query_key_and_value(fused, norm, dropout, recognised):
    spec = {**PLAIN, "scale": SIZE**-0.5 if fused else 1.0, "dropout": dropout, "source_dim": WIDTH}
    recognised(Fused(fused, norm, dropout=dropout), tokens, 1, spec)


class EncoderBlock(nn.Module):
    """torchvision's encoder block: nn.MultiheadAttention without weights."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x):
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.ln_2(x))


class ImageTransformer(nn.Module):
    """Patches by a convolution, a class token, a fixed number of positions."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.layers = nn.ModuleList(EncoderBlock() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def test_an_image_of_fixed_size(recognised):
    spec = {**PLAIN, "scale": SIZE**-0.5, "dropout": 0.1}
    recognised(ImageTransformer(), lambda b, t: {"image": torch.randn(b, 3, 16, 16)}, 2, spec, [(1, 0), (5, 0)])


class Windowed(nn.Module):
    """Windows of 4 x 4 patches, a table of relative positions, and a mask that parts shifted regions."""

    def __init__(self, shifted):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(49, HEADS))
        place = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        offset = place[:, None] - place[None] + 3
        self.register_buffer("index", offset[..., 0] * 7 + offset[..., 1])
        region = torch.arange(16).view(1, 16) // (8 if shifted else 16)
        apart = region[:, :, None] != region[:, None]
        self.register_buffer("apart", torch.zeros(apart.shape).masked_fill(apart, -100.0) if shifted else None)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        attn = q * SIZE**-0.5 @ k.transpose(-2, -1)
        attn = attn + self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.apart is not None:
            attn = attn.view(B, 1, HEADS, N, N) + self.apart.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, HEADS, N, N)
        return (attn.softmax(-1) @ v).transpose(1, 2).reshape(B, N, C)


@pytest.mark.parametrize("shifted", [False, True])
def test_windows_with_a_table_of_relative_positions(shifted, recognised):
    spec = {**PLAIN, "scale": 1.0, "bias": "dense"}
    recognised(Windowed(shifted), lambda b, t: tokens(b, 16), 1, spec, [(1, 0), (5, 0)])


class Cosine(nn.Module):
    """Normalised queries and keys, and a learned scale per head."""

    def __init__(self):
        super().__init__()
        self.qkv, self.logit_scale = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.log(10 * torch.ones(HEADS, 1, 1)))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4).unbind(0)
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * torch.clamp(self.logit_scale, max=4.6).exp()
        return (attn.softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_a_learned_scale_per_head_is_no_scale(kept):
    kept(Cosine(), tokens, 1, "multiplied by a tensor")


class ClassToken(nn.Module):
    """Only the class token asks."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        B, N, C = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(B, 1, HEADS, SIZE).permute(0, 2, 1, 3)
        k, v = (layer(x).reshape(B, N, HEADS, SIZE).permute(0, 2, 1, 3) for layer in (self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, 1, C)


class Pooling(nn.Module):
    """A learned query pools all tokens."""

    def __init__(self):
        super().__init__()
        self.latent = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x):
        B, N, C = x.shape
        q = self.q(self.latent.expand(B, -1, -1)).reshape(B, 1, HEADS, SIZE).transpose(1, 2)
        k, v = self.kv(x).reshape(B, N, 2, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        attn = ((q * SIZE**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return (attn @ v).transpose(1, 2).reshape(B, C)


@pytest.mark.parametrize(("model", "scale"), [(ClassToken, SIZE**-0.5), (Pooling, 1.0)])
def test_one_query_is_cross_attention(model, scale, recognised):
    recognised(model(), tokens, 1, {**PLAIN, "cross": True, "scale": scale})


class TwoDimensions(nn.Module):
    """Half of each head is rotated by the row of a patch, half by its column."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(3, 3 * WIDTH, 1)
        self.register_buffer("rates", 100.0 ** -torch.arange(0, 1, 0.5), persistent=False)

    def angles(self, rows, columns):
        row = (torch.arange(rows)[:, None] * self.rates)[:, None].expand(-1, columns, -1)
        column = (torch.arange(columns)[:, None] * self.rates)[None].expand(rows, -1, -1)
        return torch.cat([row, column], -1).flatten(0, 1)  # (T, 4)

    def forward(self, image):
        B, _, rows, columns = image.shape
        q, k, v = self.qkv(image).flatten(2).unflatten(1, (3, HEADS, SIZE)).permute(1, 0, 2, 4, 3)
        angles = self.angles(rows, columns)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

        def rotated(x):
            one, two = x.chunk(2, -1)
            return x * cos + torch.cat([-two, one], -1) * sin

        y = F.scaled_dot_product_attention(rotated(q), rotated(k), v)
        return y.transpose(2, 3).reshape(B, WIDTH, rows, columns)


def test_rotary_positions_in_two_dimensions(recognised):
    def images(batch, length):
        return {"image": torch.randn(batch, 3, length + 1, max(1, length - 1))}

    recognised(TwoDimensions(), images, 1, {**PLAIN, "scale": SIZE**-0.5}, [(1, 1), (3, 4), (2, 12)])
