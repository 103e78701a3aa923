"""Attention in torch's own modules, in all their options."""

import pytest
import torch
from torch import nn

WIDTH, HEADS = 16, 2
SCALE = (WIDTH // HEADS) ** -0.5
PLAIN = {
    "heads": HEADS, "kv_heads": HEADS, "head_dim": 8, "value_dim": 8, "causal": False, "windowed": False,
    "padding": False, "bias": "none", "softcap": None, "cross": False, "dropout": 0.0,
}  # fmt: skip


class Self(nn.Module):
    """Self-attention; `masks(x, padding)` gives further arguments."""

    def __init__(self, masks=None, weights=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})
        self.masks, self.weights = masks, weights

    def forward(self, x, padding=None):
        further = self.masks(x, padding) if self.masks else {}
        return self.attention(x, x, x, **{"need_weights": False, **further})[: 1 + self.weights]


class Cross(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)

    def forward(self, x, memory):
        return self.attention(x, memory, memory, need_weights=False)[0]


def tokens(batch, length):
    return {"x": torch.randn(batch, length, WIDTH)}


def length_first(batch, length):
    return {"x": torch.randn(length, batch, WIDTH)}


def padded(batch, length):
    drop = torch.zeros(batch, length, dtype=torch.bool)
    drop[0, length // 2 + 1 :] = True
    return {**tokens(batch, length), "padding": drop}


def pair(batch, length, width=WIDTH):
    return {**tokens(batch, length), "memory": torch.randn(batch, 2 * length + 1, width)}


def given_mask(batch, length):
    return {**tokens(batch, length), "padding": torch.rand(length, length) > 0.9}


def square(x):
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1])


def future(x):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


SELF = {
    "plain": (Self(), tokens, {"scale": SCALE}),
    "no bias": (Self(bias=False), tokens, {"scale": SCALE}),
    "dropout": (Self(dropout=0.3), tokens, {"scale": SCALE, "dropout": 0.3}),
    "length first": (Self(batch_first=False), length_first, {"scale": SCALE}),
    "weights thrown away": (Self(lambda x, p: {"need_weights": True}), tokens, {}),
    "padding": (Self(lambda x, p: {"key_padding_mask": p}), padded, {"padding": True}),
    "padding as a float": (
        Self(lambda x, p: {"key_padding_mask": torch.zeros(p.shape).masked_fill(p, -torch.inf)}),
        padded,
        {"padding": True},
    ),
    "causal, bool": (Self(lambda x, p: {"attn_mask": future(x)}), tokens, {"causal": True}),
    "causal, float": (Self(lambda x, p: {"attn_mask": square(x)}), tokens, {"causal": True}),
    "causal by flag": (Self(lambda x, p: {"attn_mask": square(x), "is_causal": True}), tokens, {"causal": True}),
    "causal and padding": (
        Self(lambda x, p: {"attn_mask": future(x), "key_padding_mask": p}),
        padded,
        {"causal": True, "padding": True},
    ),
    "causal, a mask each head": (
        Self(lambda x, p: {"attn_mask": future(x).expand(x.shape[0] * HEADS, -1, -1)}),
        tokens,
        {"causal": True},
    ),
    "weights thrown away, masked": (
        Self(lambda x, p: {"need_weights": True, "attn_mask": future(x), "key_padding_mask": p}),
        padded,
        {"causal": True, "padding": True},
    ),
    "zeros to attend to": (Self(add_zero_attn=True), tokens, {"cross": True}),
    "a key of its own": (Self(add_bias_kv=True), tokens, {"cross": True}),
    "a mask that is an input": (Self(lambda x, p: {"attn_mask": p}), given_mask, {"bias": "dense"}),
}


@pytest.mark.parametrize("name", SELF)
def test_self_attention(name, recognised):
    model, inputs, spec = SELF[name]
    recognised(model, inputs, 1, {**PLAIN, **spec})


@pytest.mark.parametrize("average", [True, False])
def test_weights_that_are_returned_keep_the_attention(average, kept):
    model = Self(lambda x, p: {"need_weights": True, "average_attn_weights": average}, weights=True)
    kept(model, tokens, 1, "is also read by")


CROSS = {
    "plain": (Cross(), WIDTH),
    "sizes of their own": (Cross(kdim=12, vdim=12), 12),
    "a key of its own": (Cross(add_bias_kv=True, add_zero_attn=True), WIDTH),
}


@pytest.mark.parametrize("name", CROSS)
def test_cross_attention(name, recognised):
    model, width = CROSS[name]
    recognised(model, lambda b, t: pair(b, t, width), 1, {**PLAIN, "cross": True, "scale": SCALE})


class Encoder(nn.Module):
    """nn.TransformerEncoder; causal or not."""

    def __init__(self, causal=False, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, **{"batch_first": True, **options})
        self.encoder, self.causal = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), causal

    def forward(self, x, padding=None):
        mask = square(x) if self.causal else None
        return self.encoder(x, mask=mask, src_key_padding_mask=padding, is_causal=self.causal)


ENCODERS = {
    "plain": (Encoder(), tokens, {}),
    "norm first": (Encoder(norm_first=True, activation="gelu"), tokens, {}),
    "length first": (Encoder(batch_first=False), length_first, {}),
    "padding": (Encoder(), padded, {"padding": True}),
    "causal": (Encoder(causal=True), tokens, {"causal": True}),
    "causal and padding": (Encoder(causal=True), padded, {"causal": True, "padding": True}),
}


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name, recognised):
    model, inputs, spec = ENCODERS[name]
    recognised(model, inputs, 2, {**PLAIN, "scale": SCALE, "dropout": 0.1, **spec})


class Decoder(nn.Module):
    """nn.TransformerDecoder over a memory."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x, memory):
        return self.decoder(x, memory, tgt_mask=square(x), tgt_is_causal=True, memory_is_causal=False)


def test_decoder(recognised):
    spec = {**PLAIN, "scale": SCALE, "dropout": 0.1}
    recognised(Decoder(), pair, 4, [{**spec, "causal": True}, {**spec, "cross": True}] * 2)


class Whole(nn.Module):
    """nn.Transformer, padded on both sides."""

    def __init__(self):
        super().__init__()
        self.whole = nn.Transformer(WIDTH, HEADS, 1, 1, 32, batch_first=True)

    def forward(self, x, padding, memory):
        return self.whole(
            memory, x, tgt_mask=square(x), tgt_is_causal=True, src_is_causal=False, memory_is_causal=False,
            tgt_key_padding_mask=torch.zeros(padding.shape).masked_fill(padding, -torch.inf),
        )  # fmt: skip


def test_encoder_and_decoder(recognised):
    spec = {**PLAIN, "scale": SCALE, "dropout": 0.1}
    specs = [spec, {**spec, "causal": True, "padding": True}, {**spec, "cross": True}]
    recognised(Whole(), lambda b, t: {**padded(b, t), **pair(b, t)}, 3, specs)
