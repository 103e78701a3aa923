"""`generate` beside what transformers writes with the model as it was."""

import sys

import pytest
import torch

from remixer import Decoder, GenerationError, generate, generate_stream


def prompts(rows, tokens=9):
    """Ids, and a mask whose rows but the last are padded in front."""
    ids = torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones_like(ids)
    for row in range(rows - 1):
        mask[row, : row + 2] = 0
    return ids.masked_fill(mask == 0, 0), mask


def theirs(model, ids, mask, new, **options):
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, **{"do_sample": False, **options})


class Letters:
    """A tokenizer: every id is a letter."""

    def decode(self, ids):
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture(scope="module")
def llama(pair):
    model, small = pair("llama")
    return model, Decoder(small, 120)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_tokens_are_those_of_transformers(pair, name):
    model, small = pair(name)
    decoder = Decoder(small, 60)
    for rows in (1, 3):
        ids, mask = prompts(rows)
        written = generate(decoder, ids, 40, mask)
        assert torch.equal(written, theirs(model, ids, mask, 40))
        assert len(written[:, 9:].unique()) > 5  # no text that any model writes
    assert torch.equal(generate(small, ids[:, -1:], 1), theirs(model, ids[:, -1:], None, 1))


@pytest.mark.parametrize("mixer", ["softmax", "long_short", "toeplitz"])
def test_greedy_tokens_are_those_of_the_whole_model(pair, mixer):
    small = pair("written", mixer)[1]
    ids, mask = prompts(3)
    written, exist = ids, mask
    for _ in range(40):
        with torch.no_grad():
            chosen = small(ids=written, mask=exist)[:, -1:].argmax(-1)
        written, exist = torch.cat([written, chosen], 1), torch.cat([exist, torch.ones_like(chosen)], 1)
    assert torch.equal(generate(small, ids, 40, mask), written)


def test_each_layer_remembers_what_its_own_keys_weigh(pair):
    small = pair("llama", "weighed")[1]
    torch.manual_seed(1)
    for name, weight in small.named_parameters():
        if "key_weights" in name:  # at their start all keys weigh the same, and layers could share that
            torch.nn.init.normal_(weight)
    ids, mask = prompts(3)
    written, exist = ids, mask
    for _ in range(20):
        places = (exist.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = small(input_ids=written, attention_mask=exist, position_ids=places)["logits"]
        chosen = logits[:, -1:].argmax(-1)
        written, exist = torch.cat([written, chosen], 1), torch.cat([exist, torch.ones_like(chosen)], 1)
    assert torch.equal(generate(small, ids, 20, mask), written)


@pytest.mark.parametrize("options", [
    {"do_sample": True},
    {"temperature": 0.7, "top_k": 20},
    {"top_p": 0.8, "repetition_penalty": 1.3},
    {"temperature": 1.5, "min_p": 0.05},
], ids=str)  # fmt: skip
def test_what_is_drawn_is_what_transformers_draws(llama, options):
    model, decoder = llama
    ids, mask = prompts(3)
    torch.manual_seed(7)
    wanted = theirs(model, ids, mask, 30, **{"top_k": 0, **options, "do_sample": True})
    assert torch.equal(generate(decoder, ids, 30, mask, seed=7, **options), wanted)
    assert not torch.equal(generate(decoder, ids, 30, mask, seed=8, **options), wanted)
    torch.manual_seed(7)
    assert torch.equal(generate(decoder, ids, 30, mask, **options), wanted)


def test_a_penalty_for_repetition_without_drawing(llama):
    model, decoder = llama
    ids, mask = prompts(3)
    assert torch.equal(
        generate(decoder, ids, 30, mask, repetition_penalty=1.5), theirs(model, ids, mask, 30, repetition_penalty=1.5)
    )


def test_rows_end_at_a_token(llama):
    model, decoder = llama
    ids, mask = prompts(3)
    free = generate(decoder, ids, 40, mask)
    stop = int(free[1, 9 + 4])
    ended = generate(decoder, ids, 40, mask, stop=stop, pad=0)
    assert torch.equal(ended, theirs(model, ids, mask, 40, eos_token_id=stop, pad_token_id=0))
    first = (free[1, 9:] == stop).nonzero()[0, 0] + 10
    assert torch.equal(ended[1, :first], free[1, :first])
    assert not ended[1, first:].any()
    filled = generate(decoder, ids, 40, mask, stop=[stop, 91])
    assert bool((filled[1, first:] == stop).all())
    alone = generate(decoder, ids[1:2], 40, mask[1:2], stop=stop)
    assert alone.shape == (1, first)


def test_rows_end_at_a_string(llama):
    _, decoder = llama
    ids, mask = prompts(2)
    free = generate(decoder, ids, 40, mask)
    string = Letters().decode(free[1, 9 + 5 : 9 + 8].tolist())
    assert string not in Letters().decode(free[1, 9 : 9 + 7].tolist())
    ended = generate(decoder, ids, 40, mask, stop_strings=[string, "never"], tokenizer=Letters(), pad=2)
    assert torch.equal(ended[1, : 9 + 8], free[1, : 9 + 8])
    assert bool((ended[1, 9 + 8 :] == 2).all())


def test_tokens_are_given_as_they_come(llama):
    _, decoder = llama
    ids, mask = prompts(2)
    came = []
    whole = generate(decoder, ids, 12, mask, stream=came.append)
    assert torch.equal(torch.stack(came, 1), whole[:, 9:])
    some = generate_stream(decoder, ids, 12, mask)
    assert torch.equal(next(some), came[0])
    assert torch.equal(next(some), came[1])


def test_a_function_that_chooses(llama):
    _, decoder = llama
    ids, _ = prompts(2)
    least = generate(decoder, ids, 3, choose=lambda logits: logits.argmin(-1))
    assert torch.equal(least[:, 9], decoder.prefill(ids)[0][:, -1].argmin(-1))


def test_what_is_refused_before_any_work(llama):
    _, decoder = llama
    ids, mask = prompts(2)
    for options, match in (
        ({"stop_strings": "a"}, "give a tokenizer too"),
        ({"stop_strings": "", "tokenizer": Letters()}, "can't be empty"),
        ({"temperature": 0.5, "do_sample": False}, "temperature changes nothing with do_sample=False"),
        ({"seed": 3}, "a seed changes nothing"),
        ({"choose": torch.argmax, "top_k": 3}, "choose= decides alone"),
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"max_new_tokens": 200}, "9 tokens and 200 new ones are more than the 120"),
        ({"attention_mask": mask.flip(1)}, "pad prompts on the left"),
        ({"attention_mask": mask[:1]}, r"attention_mask is \(1, 9\) and not \(2, 9\)"),
    ):
        with pytest.raises(GenerationError, match=match):
            generate_stream(decoder, ids, **{"max_new_tokens": 3, **options})
    with pytest.raises(GenerationError, match=r"one prompt is tokens\[None\]"):
        generate(decoder, ids[0], 3)
    with pytest.raises(ValueError, match="top_p"):
        generate(decoder, ids, 3, top_p=1.5)


def test_without_transformers_greedy_and_choose_work(llama, monkeypatch):
    _, decoder = llama
    ids, _ = prompts(1)
    monkeypatch.setitem(sys.modules, "transformers.generation", None)
    assert generate(decoder, ids, 3).shape == (1, 12)
    assert generate(decoder, ids, 3, do_sample=True, seed=1).shape == (1, 12)
    with pytest.raises(GenerationError, match=r"top_k, top_p: these are logits processors of transformers"):
        generate(decoder, ids, 3, top_p=0.5, top_k=3)
