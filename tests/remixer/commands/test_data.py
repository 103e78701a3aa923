"""Texts and batches."""

import json

import pytest
import torch
from safetensors.torch import save_file

from remixer.commands.data import DataError, Texts, read_data
from remixer.commands.example_inputs import InputsError
from remixer.commands.huggingface import tokenizer_of

NAMES = ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def bert(bert_folder):
    return tokenizer_of(bert_folder)


@pytest.fixture(scope="module")
def llama(llama_folder):
    return tokenizer_of(llama_folder)


def test_long_texts_become_rows_with_their_special_tokens(bert, texts):
    batches = read_data(texts, Texts(bert, (*NAMES, "token_type_ids"), 32, 4))
    assert [tuple(batch) for batch in batches] == [(*NAMES, "token_type_ids")] * 3
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 32), (4, 32), (2, 32)]
    ids, mask = (torch.cat([batch[name] for batch in batches]) for name in NAMES)
    assert (ids[:, 0] == 2).all()
    assert ids[mask.bool()].numel() == 300 + 2 * len(ids)
    assert ((ids == 0) == (mask == 0)).all()
    assert (ids[range(len(ids)), mask.sum(1) - 1] == 3).all()


def test_without_a_mask_only_whole_rows_count(llama, texts):
    batches = read_data(texts, Texts(llama, ("input_ids",), 32, 8))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(8, 32)]
    with pytest.raises(DataError, match="holds no text of 200 tokens"):
        read_data(texts, Texts(llama, ("input_ids",), 200, 8))


def test_lines_of_json(llama, tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join([json.dumps({"body": "w0 w1 w2"}), "", json.dumps({"body": "w3 w4 w5 w6"})]))
    (batch,) = read_data(file, Texts(llama, (*NAMES, "position_ids"), 16, 4, field="body"))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]] * 2
    with pytest.raises(DataError, match=r"lines\.jsonl line 1 has no text named 'text', it has body: say --field"):
        read_data(file, Texts(llama, NAMES, 16, 4))
    file.write_text('{"text": "w1"}\n{"text": ')
    with pytest.raises(DataError, match=r"lines\.jsonl line 2 is no JSON"):
        read_data(file, Texts(llama, NAMES, 16, 4))


def test_batches_of_inputs(tmp_path):
    for name in ("b", "a"):
        save_file({"x": torch.full((2, 3), float(ord(name)))}, tmp_path / f"{name}.safetensors")
    batches = read_data(tmp_path, Texts(None, ("x",), 16, 4))
    assert [float(batch["x"][0, 0]) for batch in batches] == [97.0, 98.0]
    assert len(read_data(tmp_path / "a.safetensors", Texts(None, ("x",), 16, 4))) == 1
    with pytest.raises(DataError, match=r"a\.safetensors holds x; the model takes x, padding"):
        read_data(tmp_path, Texts(None, ("x", "padding"), 16, 4))
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputsError, match=r"bad\.safetensors"):
        read_data(tmp_path, Texts(None, ("x",), 16, 4))
    (tmp_path / "text.txt").write_text("w0 w1")
    with pytest.raises(DataError, match=r"holds batches of inputs and texts, such as a\.safetensors and text\.txt"):
        read_data(tmp_path, Texts(None, ("x",), 16, 4))


@pytest.mark.parametrize(("names", "told"), [
    (("x",), "texts are for models that take input_ids; this one takes x"),
    ((*NAMES, "pixel_values"), "the model takes pixel_values too, which no text gives"),
    (NAMES, "came without a tokenizer to read texts with: say --tokenizer"),
])  # fmt: skip
def test_texts_that_a_model_can_not_take(texts, names, told):
    with pytest.raises(DataError, match=told):
        read_data(texts, Texts(None, names, 16, 4))


def test_data_that_is_not_there(tmp_path, llama):
    with pytest.raises(DataError, match="there is no file or folder"):
        read_data(tmp_path / "none", Texts(llama, NAMES, 16, 4))
    with pytest.raises(DataError, match="holds no file"):
        read_data(tmp_path, Texts(llama, NAMES, 16, 4))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*image\.png as text"):
        read_data(tmp_path, Texts(llama, NAMES, 16, 4))
