"""Biases by offset of models as they are published."""

import pytest
import torch
import transformers

import remixer
from remixer import LongShort
from remixer.testing import assert_close


def t5_encoder():
    shape = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 32, "num_layers": 2}
    return transformers.T5EncoderModel(transformers.T5Config(**shape))


def mpnet():
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.MPNetModel(transformers.MPNetConfig(**shape, intermediate_size=32))


def mpt():
    shape = {"vocab_size": 100, "d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 256}
    return transformers.MptModel(transformers.MptConfig(**shape, use_cache=False))


def bloom():
    shape = {"vocab_size": 100, "hidden_size": 48, "n_layer": 2, "n_head": 6}
    return transformers.BloomModel(transformers.BloomConfig(**shape, use_cache=False))


@pytest.mark.parametrize("make", [t5_encoder, mpnet, mpt, bloom])
def test_models_as_they_are_published(make):
    model = make().eval()
    ids, mask = torch.randint(3, 90, (2, 12)), (torch.arange(12)[None] < torch.tensor([[12], [8]])).long()
    small = remixer.remix(model, LongShort(window=256, rank=0), {"input_ids": ids, "attention_mask": mask}, strict=True)
    assert small.report.order == "n"
    assert [site.spec.bias for site in small.report.sites] == ["offset"] * 2
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert own >= {name for name, _ in small.named_parameters()}
    for T, start, stop in ((31, 0, 20), (31, 9, 31), (200, 0, 150)):
        ids, place = torch.randint(3, 90, (2, T)), torch.arange(T)
        mask = torch.stack([torch.ones(T).bool(), (place >= start) & (place < stop)])
        given = {"input_ids": ids, "attention_mask": mask.long()}
        with torch.no_grad():
            assert_close(small(**given)[0], model(**given)[0], where=mask)
