"""No quadratic residue: what the proof of growth says after a rewrite, and what the allocator says."""

import functools

import pytest
import torch
import transformers
from torch import nn

from remixer.testing import assert_order, peak_memory

LONG = 4096
LOWEST = torch.finfo(torch.float32).min
TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": LONG}  # fmt: skip
DECODER = {**TEXT, "num_key_value_heads": 1, "head_dim": 16}
OLD = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LONG}
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2}


class Layers(nn.Module):
    """Two blocks of attention written out, causal or not, with rotary positions or slopes."""

    def __init__(self, causal=False, slopes=False):
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.causal, self.slopes = causal, slopes
        self.register_buffer("rates", 1e4 ** (-torch.arange(0, 16, 2) / 16))

    def forward(self, x, keep):
        for layer in self.qkv:
            x = x + self.attended(*layer(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4), keep)
        return x

    def attended(self, q, k, v, keep):
        T = q.shape[2]
        place = torch.arange(T)
        angles = place[:, None] * self.rates
        q, k = (torch.cat([t[..., :8] * angles.cos(), t[..., 8:] * angles.sin()], -1) for t in (q, k))
        scores = q @ k.transpose(-1, -2) * 0.25
        if self.slopes:
            scores = scores - (place - place[:, None]).abs() * torch.tensor([0.5, 0.25]).view(2, 1, 1)
        seen = keep[:, None, None, :] & torch.ones(T, T, dtype=torch.bool).tril(0 if self.causal else T)
        return (torch.where(seen, scores, LOWEST).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    """nn.TransformerEncoder over padded sequences."""

    def __init__(self, causal):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)
        self.encoder, self.causal = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), causal

    def forward(self, x, keep):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        padding = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)
        return self.encoder(x, mask=mask, src_key_padding_mask=padding, is_causal=self.causal)


def pretrained(name, spelling, **options):
    """A small model of a family, in one form of its attention."""

    def build():
        config = getattr(transformers, f"{name}Config")(**options, attn_implementation=spelling)
        return getattr(transformers, "T5EncoderModel" if name == "T5" else f"{name}Model")(config)

    return build


def vectors(length):
    return {"x": torch.randn(1, length, 32), "keep": torch.arange(length)[None] < length - 3}


def ids(length):
    return {"input_ids": torch.randint(50, (1, length)), "attention_mask": (torch.arange(length)[None] > 2).long()}


# A model, its inputs, and whether its own attention holds a number for every pair of tokens.
MODELS = {
    "written out": (Layers, vectors, True),
    "written out, causal": (lambda: Layers(causal=True), vectors, True),
    "written out, slopes": (lambda: Layers(slopes=True), vectors, True),
    "torch encoder": (lambda: Encoder(False), vectors, False),
    "torch encoder, causal": (lambda: Encoder(True), vectors, True),
    "llama": (pretrained("Llama", "sdpa", **DECODER), ids, True),
    "llama, eager": (pretrained("Llama", "eager", **DECODER), ids, True),
    "mistral": (pretrained("Mistral", "eager", **DECODER, sliding_window=100), ids, True),
    "gemma2": (pretrained("Gemma2", "eager", **DECODER, sliding_window=100, query_pre_attn_scalar=16), ids, True),
    "gpt2": (pretrained("GPT2", "eager", **OLD), ids, True),
    "modernbert": (pretrained("ModernBert", "eager", **TEXT, pad_token_id=0, local_attention=64), ids, True),
    "bert": (pretrained("Bert", "eager", **TEXT), ids, True),
    "t5": (pretrained("T5", "eager", **T5), ids, True),
}


def growth(model, make, short):
    """How many times the memory that four times the length takes."""
    return peak_memory(model, **make(4 * short)) / peak_memory(model, **make(short))


# The others take their time: they run with the slow tests.
QUICK = ("written out, causal", "written out, slopes", "torch encoder", "llama", "gemma2", "modernbert", "t5")


def rows(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@functools.cache
def built(name):
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


@pytest.mark.parametrize(("mixer", "order"), [("long_short", "n"), ("toeplitz", "n log n")])
@pytest.mark.parametrize("name", rows(MODELS))
def test_memory_grows_as_proven(name, mixer, order, captured_once):
    make = MODELS[name][1]
    small = captured_once.remix(built(name), mixer, make(12))
    assert [site.status for site in small.report.sites] == ["replaced"] * 2
    assert small.report.static == ()
    assert small.report.order == order
    assert_order(small, order)
    assert growth(small, make, LONG // 4) < 6


@pytest.mark.parametrize("name", rows(name for name, (_, _, pairs) in MODELS.items() if pairs))
def test_the_memory_of_the_original_grows_as_the_square(name, captured_once):
    make, model = MODELS[name][1], built(name)
    report = captured_once.explain(model, make(12))
    assert report.order == "n^2"
    assert growth(model, make, LONG // 8) > 9
