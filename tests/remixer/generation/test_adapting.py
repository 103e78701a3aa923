"""Rewritten decoders in the hands of transformers."""

import pytest
import torch

import remixer
from remixer import GenerationError


def prompts(rows, tokens=9):
    ids = torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    mask[:-1, :3] = 0
    return ids.masked_fill(mask == 0, 0), mask


@pytest.fixture(scope="module")
def llama(pair):
    model, small = pair("llama")
    return model, remixer.as_transformers(small, model.config, length=100)


@pytest.mark.parametrize("options", [
    {},
    {"num_beams": 3},
    {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.5},
    {"do_sample": True, "temperature": 0.8, "num_return_sequences": 2},
    {"prefill_chunk_size": 4},
    {"use_cache": False},
], ids=str)  # fmt: skip
def test_it_writes_what_the_model_wrote(llama, options):
    model, adapted = llama
    ids, mask = prompts(2)
    found = []
    for each in (model, adapted):
        torch.manual_seed(5)
        given = {"max_new_tokens": 20, "do_sample": False, **options}
        found.append(each.generate(input_ids=ids, attention_mask=mask, **given))
    assert torch.equal(*found)


@pytest.mark.parametrize(("name", "mixer"), [("llama", "long_short"), ("written", "toeplitz")])
def test_efficient_mixers_write_what_generate_writes(pair, name, mixer):
    (model, _), (_, small) = pair("llama"), pair(name, mixer)
    ids, mask = prompts(2)
    adapted = remixer.as_transformers(small, model.config, length=40)
    written = adapted.generate(input_ids=ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    assert torch.equal(written, remixer.generate(small, ids, 30, mask))
    beams = adapted.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20, do_sample=False, num_beams=3)
    slow = adapted.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=20, do_sample=False, num_beams=3, use_cache=False
    )
    assert torch.equal(beams, slow)


def test_its_loss_is_the_models(llama):
    model, adapted = llama
    ids, _ = prompts(2)
    torch.testing.assert_close(adapted(ids, labels=ids).loss, model(ids, labels=ids).loss)
    assert adapted(ids, logits_to_keep=2).logits.shape == (2, 2, 90)


def test_a_pipeline_takes_it(llama):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, pipeline

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(90)}, unk_token="w2"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w2", padding_side="left")
    found = []
    for each in llama:
        write = pipeline("text-generation", model=each, tokenizer=tokenizer, device="cpu")
        found.append(write(["w5 w6 w7", "w9"], max_new_tokens=12, do_sample=False, batch_size=2))
    assert found[0] == found[1]
    assert len(found[0][1][0]["generated_text"].replace("w", " ").split()) == 13


def test_a_text_goes_on_from_its_cache(llama):
    _, adapted = llama
    ids, _ = prompts(1)
    options = {"do_sample": False, "return_dict_in_generate": True}
    first = adapted.generate(input_ids=ids, max_new_tokens=8, **options)
    assert first.past_key_values.get_seq_length() == ids.shape[1] + 7  # nothing has read the last token yet
    second = adapted.generate(
        input_ids=first.sequences, max_new_tokens=8, past_key_values=first.past_key_values, **options
    )
    assert torch.equal(second.sequences, adapted.generate(input_ids=ids, max_new_tokens=16, do_sample=False))


def test_what_it_refuses(llama):
    from transformers import DynamicCache

    model, adapted = llama
    ids, _ = prompts(1)
    with pytest.raises(GenerationError, match="takes no inputs_embeds here"):
        adapted(ids, inputs_embeds=ids)
    with pytest.raises(GenerationError, match="got LlamaForCausalLM"):
        remixer.as_transformers(model, model.config, length=10)
    with pytest.raises(GenerationError, match="got a DynamicCache as past_key_values"):
        adapted(ids, past_key_values=DynamicCache())
    with pytest.raises(GenerationError, match="can't load a rewritten model"):
        adapted.save_pretrained("folder")
    with pytest.raises(GenerationError, match="cache_implementation='static' is for keys and values"):
        adapted.generate(input_ids=ids, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(ValueError, match="stateful"):
        adapted.generate(input_ids=ids, max_new_tokens=3, assistant_model=model)
