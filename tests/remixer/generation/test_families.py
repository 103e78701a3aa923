"""Tiny models of several families write what transformers writes with them, and go on after an encoder."""

import copy

import pytest
import torch

import remixer
from remixer import Decoder, GenerationError, LongShort, Toeplitz, generate

VOCABULARY = 90
TINY = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}  # fmt: skip
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}
SEQ2SEQ = {"vocab_size": VOCABULARY, "d_model": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
           "decoder_start_token_id": 1, "tie_word_embeddings": False}  # fmt: skip
FAMILIES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel",
             {"vocab_size": VOCABULARY, "n_positions": 200, "n_embd": 32, "n_layer": 2, "n_head": 4,
              "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**TINY, "sliding_window": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**TINY, **SLIDING, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**TINY, **SLIDING}),
    "bart": ("BartConfig", "BartForConditionalGeneration",
             {**SEQ2SEQ, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
              "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
              "max_position_embeddings": 128, "forced_eos_token_id": None}),
    "t5": ("T5Config", "T5ForConditionalGeneration",
           {**SEQ2SEQ, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
}  # fmt: skip


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def tiny(family):
    import transformers

    config, model, options = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # so that no token follows itself for ever
            parameter += 0.2 * torch.randn(parameter.shape)
    return made


def prompts(rows, tokens=11, seed=0):
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed + rows))
    mask = torch.ones_like(ids)
    for row in range(rows - 1):
        mask[row, : row + 2] = 0
    return ids.masked_fill(mask == 0, 0), mask


def example(rows=2, tokens=20):
    ids = torch.randint(3, VOCABULARY, (rows, tokens))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(tokens).expand(rows, -1),
    }


@pytest.mark.parametrize("family", ["mistral", "gemma2", *(slow(name) for name in ("gpt2", "gemma3"))])
def test_greedy_tokens_are_those_of_transformers(family):
    model = tiny(family)
    decoder = Decoder(remixer.remix(model, "softmax", example(), strict=True), 40)
    for rows in (1, 4):
        ids, mask = prompts(rows)
        written = generate(decoder, ids, 24, mask)
        given = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False}
        assert torch.equal(written, model.generate(input_ids=ids, **given))
        assert len(written[:, 11:].unique()) > 3


@pytest.mark.parametrize(("family", "mixer"), [slow("mistral", Toeplitz()), ("gemma2", LongShort(window=8, segment=4))])
def test_attentions_that_were_kept_go_on_from_their_keys_and_values(family, mixer):
    small = remixer.remix(tiny(family), {"*.1.*": mixer, "*": None}, example())
    decoder = Decoder(small, 60)
    ids, mask = prompts(3, 50)
    with torch.no_grad():
        places = (mask.cumsum(1) - 1).clamp(min=0)
        whole = small(input_ids=ids, attention_mask=mask, position_ids=places).logits
    logits, state = decoder.prefill(ids[:, :20], mask[:, :20])
    more, _ = decoder.step(ids[:, 20:], state)
    streamed = torch.cat([logits, more], 1)
    assert (streamed - whole[:, 19:]).abs().max() <= 1e-4 * whole.abs().max()
    assert [site.status for site in small.report.sites] == ["kept", "replaced"]
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.1)  # the weights are those that the model has now
        changed = small(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 19:20]
    assert (Decoder(small, 60).prefill(ids[:, :20], mask[:, :20])[0] - changed).abs().max() <= 1e-4 * whole.abs().max()


def sources(rows=2, tokens=14):
    ids, mask = prompts(rows, tokens, seed=5)
    return {"input_ids": ids, "attention_mask": mask.flip(1)}


@pytest.fixture(scope="module")
def translator():
    made = {}

    def get(family):
        if family not in made:
            model = tiny(family)
            given = {**sources(), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 9))}
            if family == "t5":
                given["decoder_attention_mask"] = torch.ones(2, 9, dtype=torch.int64)
            small = remixer.remix(model, "softmax", given, strict=True)
            made[family] = model, small, Decoder(small, 40)
        return made[family]

    return get


@pytest.mark.parametrize("family", ["bart", slow("t5")])
def test_what_an_encoder_gave_is_read_at_every_step(translator, family):
    model, _, decoder = translator(family)
    for rows in (1, 3):
        source, start = sources(rows), torch.ones(rows, 1, dtype=torch.int64)
        written = generate(decoder, start, 20, source=source, repetition_penalty=3.0)
        wanted = model.generate(**source, max_new_tokens=20, do_sample=False, num_beams=1, repetition_penalty=3.0)
        assert torch.equal(written, wanted)
        assert len(written[:, 1:].unique()) > 8
    _, state = decoder.prefill(start, source=source)
    twice = decoder.reorder(state, torch.tensor([2, 0]))
    one, _ = decoder.step(written[[2, 0], 1:4], twice)
    other, _ = decoder.step(written[:, 1:4], state)
    torch.testing.assert_close(one, other[[2, 0]])
    assert not any(name.startswith("input_ids") for name in decoder._streaming.state)


def test_an_encoder_needs_its_inputs(translator):
    _, small, decoder = translator("bart")
    start = torch.ones(2, 1, dtype=torch.int64)
    with pytest.raises(GenerationError, match="reads input_ids, attention_mask, and source= has nothing"):
        decoder.prefill(start)
    with pytest.raises(GenerationError, match=r"input_ids has shape \(3, 14\), and there are tokens of 2 rows"):
        generate(small, start, 3, source=sources(3))
    single = remixer.remix(tiny("gpt2"), "softmax", example())
    with pytest.raises(GenerationError, match="reads nothing, and source= has input_ids, attention_mask"):
        generate(single, start, 3, source=sources())


def test_a_decoder_is_kept_with_its_model(pair, monkeypatch):
    from remixer.generation import keeping

    small, built = copy.deepcopy(pair("written", "toeplitz")[1]), []

    def build(model, length):
        built.append(length)
        return Decoder(model, length)

    monkeypatch.setattr(keeping, "Decoder", build)
    ids = torch.randint(3, VOCABULARY, (1, 6))
    first = generate(small, ids, 10)
    assert torch.equal(generate(small, ids[:, :4], 8)[:, :4], ids[:, :4])
    assert torch.equal(generate(small, ids, 10), first)
    assert built == [16]
    again = copy.deepcopy(small)
    with torch.no_grad():
        next(small.parameters()).mul_(3.0)
    assert not torch.equal(generate(small, ids, 10), first)
    assert torch.equal(generate(again, ids, 10), first)
    generate(small, ids, 11)
    assert built == [16, 16, 16, 17]
