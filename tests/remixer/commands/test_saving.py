"""Commands that write: from a model to an artifact, and on from there."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import remixer


def names(folder):
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture(scope="module")
def small(llama_folder, tmp_path_factory):
    """A Llama with another mixer, as `remix` saves it, and what was said."""
    from commanded_here import says

    folder = tmp_path_factory.mktemp("saved") / "small"
    said = says("remix", llama_folder, "--mixer", "long_short(window=8, segment=4)", "--out", folder, "--json")
    assert said.code == 0, said.err
    return folder, said.data


def test_remix(small, llama_folder):
    folder, said = small
    assert [site["status"] for site in said["report"]["sites"]] == ["replaced"]
    assert said["out"] == str(folder)
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    loaded = remixer.load(folder)
    assert loaded.report.sites[0].config == remixer.LongShort(window=8, segment=4)
    ids = torch.randint(4, 20, (1, 40))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert loaded(**given).logits.shape == (1, 40, 26)


def test_an_artifact_is_explained_and_not_rewritten_again(remixer_says, small, tmp_path):
    said = remixer_says("explain", small[0])
    assert said.code == 0
    assert "long_short(window=8, segment=4)" in said.out
    said = remixer_says("remix", small[0], "--mixer", "toeplitz", "--out", tmp_path / "x")
    assert (said.code, names(tmp_path)) == (1, [])
    assert "is rewritten already" in said.err


def test_generate(remixer_says, small):
    said = remixer_says("generate", small[0], "--prompt", "w1 w2 w3", "--tokens", 5, "--json")
    assert said.code == 0, said.err
    (one,) = said.data["texts"]
    assert one["prompt"] == "w1 w2 w3"
    assert 1 <= len(one["tokens"]) <= 5
    wanted = remixer.generate(remixer.load(small[0]), torch.tensor([[5, 6, 7]]), 5, stop=3)[0, 3:].tolist()
    assert one["tokens"] == wanted
    shown = remixer_says("generate", small[0], "--prompt", "w1 w2 w3", "--tokens", 5)
    assert shown.code == 0
    assert shown.out.split()[:3] == ["w1", "w2", "w3"]
    assert " ".join(shown.out.split()[3:]) == one["text"].strip()


def test_two_prompts_side_by_side(remixer_says, small):
    prompts = ("--prompt", "w1 w2 w3 w4 w5", "--prompt", "w1 w2 w3")
    texts = remixer_says("generate", small[0], *prompts, "--tokens", 4, "--json").data["texts"]
    (alone,) = remixer_says("generate", small[0], "--prompt", "w1 w2 w3", "--tokens", 4, "--json").data["texts"]
    assert texts[1]["tokens"] == alone["tokens"]


def test_prompts_that_nobody_reads(remixer_says, small, tmp_path):
    said = remixer_says("generate", small[0], "--prompt", "")
    assert (said.code, said.out) == (1, "")
    assert "has no token to go on from" in said.err
    said = remixer_says("generate", "commanded:decoder", "--prompt", "w1")
    assert "came without a tokenizer: say --tokenizer" in said.err
    said = remixer_says("generate", small[0], "--prompt", "w1", "--tokenizer", tmp_path)
    assert "finds no tokenizer in" in said.err


def test_transfer(remixer_says, small, texts, tmp_path):
    picture, out = tmp_path / "losses.png", tmp_path / "learned"
    options = ("--data", texts, "--length", 32, "--steps", 6, "--out", out, "--plot", picture)
    said = remixer_says("transfer", small[0], *options, "--json")
    assert said.code == 0, said.err
    assert {name: stage["steps"] for name, stage in said.data["stages"].items()} == {"attention": 2, "outputs": 4}
    assert picture.stat().st_size > 1000
    assert names(tmp_path) == ["learned", "losses.png"]
    before, after = remixer.load(small[0]), remixer.load(out)
    assert len(after.transfers) == 1
    assert after.original is not None
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert (out / "tokenizer").is_dir()


def test_a_function_may_return_a_rewritten_model(remixer_says, texts, tmp_path):
    assert "toeplitz()" in remixer_says("explain", "commanded:rewritten").out
    said = remixer_says("transfer", "commanded:rewritten", "--data", texts)
    assert said.code == 2
    assert "commanded:rewritten is no folder to save the result to: say --out" in said.err
    data = tmp_path / "x.safetensors"
    save_file({"src": torch.randn(2, 20, 32)}, data)
    options = ("--data", data, "--steps", 2, "--stage", "attention", "--out", tmp_path / "small")
    assert remixer_says("transfer", "commanded:rewritten", *options).code == 0
    assert len(remixer.load(tmp_path / "small").transfers) == 1


def test_transfers_that_can_not_be(remixer_says, small, texts, llama_folder, tmp_path):
    said = remixer_says("transfer", llama_folder, "--data", texts, "--out", tmp_path / "x")
    assert (said.code, names(tmp_path)) == (1, [])
    assert "is not what `remixer remix` saved" in said.err
    said = remixer_says("transfer", small[0], "--data", texts, "--out", tmp_path / "x", "--stage", "both")
    assert "stages must be some of attention, outputs, got ['both']" in said.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    said = remixer_says("transfer", small[0], "--data", texts, "--out", tmp_path / "full")
    assert "holds something else" in said.err
    assert names(tmp_path) == ["full"]


def test_export(remixer_says, small, tmp_path):
    file = tmp_path / "encoder.onnx"
    said = remixer_says("export", "commanded:encoder", "--onnx", file, "--json")
    assert said.code == 0, said.err
    assert said.data["manifest"] == json.loads((tmp_path / "encoder.onnx.json").read_text())
    assert names(tmp_path) == ["encoder.onnx", "encoder.onnx.json"]
    said = remixer_says("export", small[0], "--onnx", tmp_path / "no" / "x.onnx")
    assert (said.code, said.out) == (1, "")
    assert "there is no folder" in said.err
    said = remixer_says("export", small[0], "--onnx", file, "--precision", "float16")
    assert said.code == 1
    assert "float16" in said.err


@pytest.mark.slow
def test_exports_of_what_was_saved(remixer_says, small, tmp_path):
    assert remixer_says("export", small[0], "--onnx", tmp_path / "small.onnx").code == 0
    said = remixer_says("export", small[0], "--onnx", tmp_path / "decoder", "--decoder", "--tokens", 40)
    assert said.code == 0, said.err
    assert {"prefill.onnx", "step.onnx", "decoder.json"} <= set(names(tmp_path / "decoder"))


@pytest.mark.parametrize(("options", "told"), [
    (("--decoder",), "--decoder needs --tokens"),
    (("--tokens", 5), "--tokens is for --decoder"),
    (("--mixer", "toeplitz"), "is rewritten already: it has its mixers"),
    (("--provider", "tpu"), "'tpu'"),
])  # fmt: skip
def test_exports_that_are_misunderstood(remixer_says, small, tmp_path, options, told):
    said = remixer_says("export", small[0], "--onnx", tmp_path / "x.onnx", *options)
    assert said.code == 2
    assert told in said.err


def test_partition(remixer_says, tmp_path):
    parts, picture = tmp_path / "parts", tmp_path / "volumes.png"
    options = ("--ranks", 2, "--scheme", "ring", "--tokens", 1024, "--out", parts, "--plot", picture)
    said = remixer_says("partition", "commanded:encoder", *options, "--json")
    assert said.code == 0, said.err
    assert (said.data["plan"]["scheme"], said.data["stage_bytes"]) == ("ring", [])
    assert said.data["sent_bytes"]["ring"] == 512 * 2 * 32 * 4  # keys and values of the other half, 32 wide, 4 bytes
    assert "plan.json" in names(parts)
    assert picture.stat().st_size > 1000


def test_partition_in_stages(remixer_says, tmp_path):
    options = ("--ranks", 2, "--strategy", "stages", "--tokens", 100, "--out", tmp_path / "parts")
    said = remixer_says("partition", "commanded:two_attentions", *options, "--plot", tmp_path / "v.png")
    assert said.code == 0, said.err
    (crossing,) = re.findall(r"from stage 0 to stage 1 +\S +([\d.]+)", said.out)
    assert float(crossing) >= 0.01  # MiB: 100 tokens, 32 wide, 4 bytes
    assert (tmp_path / "v.png").stat().st_size > 1000


def test_remix_by_a_plan_and_longer(remixer_says, tmp_path):
    site = {"name": "", "groups": [[0, 1, 2, 3]], "configs": [{"mixer": "toeplitz"}], "harms": {}}
    front = [{"share": 0.5, "harm": 0.1, "replaced": 1, "chosen": True}]
    explained = remixer_says("explain", "commanded:decoder", "--json").data["report"]["sites"]
    plan = {"format": 1, "length": 64, "cost": "flops", "loss": "auto", "front": front}
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"sites": [site | {"name": explained[0]["name"]}]}))
    options = ("--plan", tmp_path / "plan.json", "--max-length", 300, "--no-original", "--out", tmp_path / "small")
    said = remixer_says("remix", "commanded:decoder", *options)
    assert said.code == 0, said.err
    loaded = remixer.load(tmp_path / "small")
    assert loaded(torch.randint(0, 60, (1, 300))).shape == (1, 300, 60)
    assert loaded.original is None
    file = tmp_path / "x.safetensors"
    save_file({"ids": torch.zeros(1, 20, dtype=torch.int64)}, file)
    said = remixer_says("transfer", tmp_path / "small", "--data", file)
    assert "was saved without the model that it was made from" in said.err


def test_nothing_could_be_replaced(remixer_says, tmp_path):
    mixer = "distributed(scheme='ulysses')"
    for model, options in (
        ("commanded:no_attention", ("--mixer", mixer)),
        ("commanded:crossing", ("--mixer", "toeplitz")),
    ):
        said = remixer_says("remix", model, *options, "--out", tmp_path / "x", "--json")
        assert (said.code, names(tmp_path)) == (3, [])
        assert "report" in said.data
        assert said.data["error"]["message"] in said.err


def test_a_pattern_that_selects_nothing(remixer_says, tmp_path):
    said = remixer_says("remix", "commanded:decoder", "--mixer", "enc*=toeplitz", "--out", tmp_path / "x")
    assert (said.code, names(tmp_path)) == (1, [])
    assert "selects no attention" in said.err
