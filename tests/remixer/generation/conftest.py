"""Tiny decoders, rewritten."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import remixer
from remixer import LongShort, Toeplitz

VOCABULARY = 90


class Written(nn.Module):
    """Written by hand: one attention, four heads on two, positions by a table."""

    def __init__(self, longest=400):
        super().__init__()
        self.embedding, self.places = nn.Embedding(VOCABULARY, 32), nn.Embedding(longest, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, ids, mask):
        place = torch.arange(ids.shape[1])
        hidden = self.embedding(ids) + self.places(place)
        query, key, value = (
            each(hidden).unflatten(-1, (-1, 8)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        seen = mask.bool()[:, None, None] & (place <= place[:, None])
        scores = (query @ key.repeat_interleave(2, 1).mT / math.sqrt(8)).masked_fill(~seen, -1e9)
        mixed = F.softmax(scores, -1) @ value.repeat_interleave(2, 1)
        return self.head(hidden + 4 * mixed.transpose(1, 2).flatten(2))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=400, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, **ids
    )
    return GPT2LMHeadModel(config)


MODELS = {"llama": llama, "gpt2": gpt2, "written": Written}
MIXERS = {
    "softmax": "softmax",
    "long_short": LongShort(window=16, segment=4, memory=3),
    "toeplitz": Toeplitz(),
    "weighed": Toeplitz(weigh="key"),
}


@pytest.fixture(scope="session")
def pair():
    """A function from names of a model and a mixer to the model, and what it is rewritten to."""
    made = {}

    def get(name, mixer="softmax"):
        if (name, mixer) not in made:
            torch.manual_seed(0)
            model = made[name] if name in made else made.setdefault(name, MODELS[name]().eval())
            ids = torch.randint(0, VOCABULARY, (2, 20))
            mask = torch.ones_like(ids)
            inputs = {"ids": ids, "mask": mask}
            if name != "written":
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(20).expand(2, -1)}
            made[name, mixer] = remixer.remix(model, MIXERS[mixer], inputs, strict=True)
        return made[name], made[name, mixer]

    return get
