"""Models of two lengths, the source's and the target's, whose tokens are spread; processes are played in this one."""

import math

import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort
from remixer.export import PartitionError, partition
from remixer.passes.errors import ShardError
from remixer.passes.prove_sharding import prove_sharding
from remixer.passes.shard_sequence import LENGTH, ShardSequence
from remixer.passes.sharded_sites import lengths_in
from remixer.rewrite.program import Program


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, hidden, seen, source=None):
        source = hidden if source is None else source
        query = self.query(hidden).unflatten(-1, (4, 8)).transpose(1, 2)
        key, value = (each(source).unflatten(-1, (4, 8)).transpose(1, 2) for each in (self.key, self.value))
        scores = (query @ key.transpose(-1, -2) / math.sqrt(8)).masked_fill(~seen, -math.inf)
        return hidden + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Translator(nn.Module):
    def __init__(self, third=False):
        super().__init__()
        self.third = third
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.encoder, self.decoder, self.across, self.beside = (Attention() for _ in range(4))
        self.head = nn.Linear(32, 50)

    def forward(self, ids, mask, target, other=None):
        place = torch.arange(target.shape[1], device=ids.device)
        there = mask[:, None, None, :].bool()
        source = self.encoder(self.tokens(ids), there)
        hidden = self.tokens(target) + self.places(place)
        hidden = self.decoder(hidden, place <= place[:, None])
        hidden = self.across(hidden, there, source)
        if self.third:
            hidden = self.beside(hidden, torch.ones((), dtype=torch.bool), self.tokens(other))
        return {"logits": self.head(hidden), "last": hidden[:, -1], "source": source.mean(1), "both": source[:, 0]}


def inputs(S=12, T=9, **others):
    torch.manual_seed(S)
    given = {"ids": torch.randint(0, 50, (2, S)), "mask": torch.ones(2, S, dtype=torch.long)}
    return given | {"target": torch.randint(0, 50, (2, T)), **others}


def translator(mixer="distributed", third=False):
    torch.manual_seed(0)
    others = {"other": torch.randint(0, 50, (2, 7))} if third else {}
    return Program.of(remixer.remix(Translator(third).eval(), mixer, inputs(**others)))


@pytest.mark.parametrize("scheme", ["all_gather", "ulysses"])
def test_source_and_target_are_spread_each_by_itself(scheme):
    program = translator()
    result = ShardSequence(scheme)(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert not result.misses  # nothing was gathered
    lengths = {node.meta[LENGTH] for node in result.program.graph.nodes if LENGTH in node.meta}
    assert lengths == set(lengths_in(program))
    assert len(lengths) == 2


def test_the_encoder_may_have_another_mixer():
    program = translator({"encoder": LongShort(window=4, rank=2), "*": "distributed"})
    result = ShardSequence("all_gather")(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert not result.misses


def test_a_third_length_is_refused():
    with pytest.raises(ShardError, match=r"one length, or one of queries and one of keys.*at encoder.*at beside"):
        ShardSequence("all_gather")(translator(third=True))


def test_stages_beside_two_lengths_are_refused():
    torch.manual_seed(0)
    model = remixer.remix(Translator().eval(), "distributed", inputs())
    with pytest.raises(PartitionError, match=r"tokens of 2 lengths are spread.*strategy='stages'"):
        partition(model, 4, stages=2)


def pretrained(name):
    transformers = pytest.importorskip("transformers")
    if name == "T5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        return transformers.T5Model(transformers.T5Config(vocab_size=50, use_cache=False, **sizes))
    sizes = {f"{part}_{size}": count for part in ("encoder", "decoder") for size, count in SIZES.items()}
    config = transformers.BartConfig(vocab_size=50, d_model=32, max_position_embeddings=64, use_cache=False, **sizes)
    return transformers.BartModel(config)


SIZES = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}


@pytest.mark.parametrize("name", ["Bart", pytest.param("T5", marks=pytest.mark.slow)])
def test_models_of_a_library(name):
    torch.manual_seed(0)
    given = {"input_ids": torch.randint(4, 50, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    given["decoder_input_ids"] = torch.randint(4, 50, (2, 9))
    program = Program.of(remixer.remix(pretrained(name).eval(), "distributed", given))
    result = ShardSequence("all_gather")(program)
    assert prove_sharding(program, result.program) < 1e-4
    assert not result.misses
