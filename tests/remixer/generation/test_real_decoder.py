"""The real SmolLM2 writes what transformers writes with it."""

import time

import pytest
import torch
from pretrained import smollm2

import remixer
from remixer import Decoder, generate

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "def fibonacci(n):\n    ",
    "Water boils when it is heated because the molecules",
]


@pytest.fixture(scope="module")
def decoder():
    model, tokenizer = smollm2()
    ids = torch.randint(1000, 20000, (2, 24), generator=torch.Generator().manual_seed(0))
    places = torch.arange(24).expand(2, -1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
    return model, tokenizer, Decoder(remixer.remix(model, "softmax", inputs, strict=True), 256)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("batch", [1, 4])
def test_greedy_tokens_are_those_of_transformers(decoder, batch):
    model, tokenizer, ours = decoder
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for start in range(0, len(PROMPTS), batch):
        given = tokenizer(PROMPTS[start : start + batch], return_tensors="pt", padding=True)
        ids, mask = given["input_ids"], given["attention_mask"]
        clocks = [(time.perf_counter(), time.process_time())]
        written = generate(ours, ids, 200, mask)
        clocks.append((time.perf_counter(), time.process_time()))
        options = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        wanted = model.generate(input_ids=ids, attention_mask=mask, **options)
        clocks.append((time.perf_counter(), time.process_time()))
        for who, before, after in zip(("remixer", "transformers"), clocks, clocks[1:], strict=False):
            print(f"{who}, {batch} rows: {after[0] - before[0]:.1f} s, of the processor {after[1] - before[1]:.1f} s")
        assert torch.equal(written, wanted)
