"""What streaming.py writes, on a tiny model."""

import json
import sys
import threading

import pytest
import streaming
import torch


@pytest.fixture
def result(monkeypatch, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=90, num_key_value_heads=2, initializer_range=0.2, eos_token_id=None, **sizes)
    model = LlamaForCausalLM(config).eval()

    lock = threading.Lock()

    def one_after_the_other(file, flag, name, *others):  # in this process, where torch exports one model at a time
        with lock:
            return streaming.one_million(name, 200)

    def texts(tokenizer, count, length):
        return torch.randint(1, 90, (count, length))

    monkeypatch.setattr(streaming, "smollm2", lambda: (model, None))
    monkeypatch.setattr(streaming, "standard_library_windows", texts)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(streaming, "alone", one_after_the_other)

    def run(*arguments):
        out = tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", ["streaming.py", "--out", str(out), *arguments])
        streaming.main()
        return json.loads(out.read_text())

    return run


@pytest.mark.slow
def test_every_part(result):
    small = "--prompts 5 --new 6 --tokens 80 --state-tokens 2000 --contexts 8 300 --rounds 2"
    found = result(*small.split())
    assert list(found) == list(streaming.PARTS)
    assert [(row["batch"], row["equal"]) for row in found["greedy"]["rows"]] == [(1, 5), (4, 5)]
    assert all(row["seconds"] > 0 and row["transformers_seconds"] > 0 for row in found["greedy"]["rows"])
    assert len(found["portions"]["rows"]) == 8
    assert all(row["error"] < 1e-4 and row["same_argmax"] == 1 for row in found["portions"]["rows"])
    held = {(row["mixer"], row["tokens"]): row["bytes"] for row in found["state"]["rows"]}
    assert held["softmax", 2000] > 2 * 2 * 2000 * 8 * 4 > 10 * held["softmax", 20]
    assert held["long_short", 2000] == held["long_short", 20]
    assert {(row["mixer"], row["context"]) for row in found["time"]["rows"]} == {
        (mixer, context) for mixer in streaming.MIXERS for context in (8, 300)
    }
    rows = found["million"]["rows"]
    assert [row["tokens"] for row in rows] == [65, 129, 193, 200] * 2  # of ten tenths those that a portion ends in
    assert len({row["state_bytes"] for row in rows[:4]}) == 1


def test_parts_that_are_not_run_stay(result):
    first = result("--only", "state", "--state-tokens", "2000")
    both = result("--only", "million")
    assert list(both) == ["state", "million"]
    assert both["state"] == first["state"]
