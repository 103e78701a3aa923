"""Commands that change nothing: explain, mixers, bench, plan, view."""

import json

import pytest

import remixer
from remixer import LongShort, Plan


def test_mixers(remixer_says):
    said = remixer_says("mixers")
    assert said.code == 0
    for name in remixer.mixers.available():
        assert name in said.out
    assert "One softmax over a window of tokens" in said.out
    found = {record["name"]: record for record in remixer_says("mixers", "--json").data["mixers"]}
    assert {"name": "window", "type": "int", "default": 128} in found["long_short"]["options"]
    assert found["softmax"]["options"] == []


def test_one_mixer(remixer_says):
    said = remixer_says("mixers", "long_short")
    assert "how many tokens one sees" in said.out
    said = remixer_says("mixers", "long_shirt")
    assert (said.code, said.out) == (1, "")
    assert "Did you mean 'long_short'" in said.err


def test_explain(remixer_says, bert_folder):
    said = remixer_says("explain", bert_folder)
    assert said.code == 0
    assert "1 attention: 1 understood; grows as n^2" in said.out
    assert "4 heads of 8, bidirectional" in said.out


def test_explain_for_programs(remixer_says):
    said = remixer_says("explain", "commanded:encoder", "--json")
    assert said.code == 0
    assert said.data["inputs"] == {"src": {"dtype": "float32", "shape": [2, 9, 32]}}
    assert [site["status"] for site in said.data["report"]["sites"]] == ["understood"]


def test_nothing_to_explain(remixer_says):
    said = remixer_says("explain", "commanded:no_attention")
    assert said.code == 3
    assert "0 attentions" in said.out


def test_bench(remixer_says, tmp_path):
    picture = tmp_path / "cost.png"
    options = ("--mixer", "long_short(window=4)", "--lengths", "64,16,300", "--runs", 1, "--plot", picture)
    said = remixer_says("bench", "commanded:decoder", *options, "--json")
    assert said.code == 1
    assert "the rewritten model takes no more than 100 tokens, not 300: say --max-length" in said.err
    assert not picture.exists()
    said = remixer_says("bench", "commanded:decoder", *options, "--max-length", 300, "--json")
    assert said.code == 0, said.err
    costs = said.data["models"]
    assert [each["length"] for each in costs["rewritten"]] == [16, 64, 300]
    assert [each["length"] for each in costs["original"]] == [16, 64]
    assert all(each["seconds"] > 0 for each in costs["rewritten"])
    (failed,) = said.data["failed"]
    assert failed.startswith("original can't take 300 tokens")
    assert picture.stat().st_size > 1000


def test_bench_as_a_table(remixer_says):
    said = remixer_says("bench", "commanded:encoder", "--mixer", "toeplitz", "--lengths", "16,32", "--runs", 1)
    assert said.code == 0
    head, *rows = [line.split() for line in said.out.splitlines() if line.strip()]
    assert head[0] == "tokens"
    assert [row[0] for row in rows[1:]] == ["16", "32"]


@pytest.mark.parametrize(("options", "told"), [
    (("--lengths", "16,many", "--mixer", "toeplitz"), "lengths are numbers with commas between"),
    (("--lengths", "1,16", "--mixer", "toeplitz"), "lengths start at 2 tokens, got 1"),
    ((), "give either --mixer"),
])  # fmt: skip
def test_bench_can_be_misunderstood(remixer_says, options, told):
    said = remixer_says("bench", "commanded:encoder", *options)
    assert said.code == 2
    assert told in said.err


def test_pictures_are_refused_before_any_work(remixer_says, tmp_path):
    for name, told in (("no/a.png", "there is no folder"), ("a.xyz", "needs an ending"), (".", "is a folder")):
        said = remixer_says("bench", "commanded:broken", "--mixer", "toeplitz", "--plot", tmp_path / name)
        assert said.code == 1
        assert told in said.err


def test_plan(remixer_says, llama_folder, texts, tmp_path):
    file, picture = tmp_path / "plan.json", tmp_path / "front.png"
    options = ("--data", texts, "--out", file, "--mixer", "long_short(window=4, sinks=0)", "--harm", 100)
    said = remixer_says("plan", llama_folder, *options, "--length", 32, "--plot", picture, "--json")
    assert said.code == 0, said.err
    plan = Plan.load(file)
    assert said.data["plan"] == json.loads(plan.to_json())
    assert [site.configs for site in plan.sites] == [(LongShort(window=4, sinks=0),)]
    assert picture.stat().st_size > 1000
    assert sorted(each.name for each in tmp_path.iterdir()) == ["front.png", "plan.json"]


def test_plans_that_can_not_be(remixer_says, llama_folder, texts, tmp_path):
    said = remixer_says("plan", llama_folder, "--data", texts, "--out", tmp_path / "no" / "plan.json")
    assert (said.code, said.out) == (1, "")
    assert "there is no folder" in said.err
    said = remixer_says("plan", llama_folder, "--data", tmp_path / "none", "--out", tmp_path / "plan.json")
    assert "there is no file or folder" in said.err
    said = remixer_says("plan", llama_folder, "--data", texts, "--out", tmp_path / "plan.json", "--budget", 2)
    assert (said.code, list(tmp_path.iterdir())) == (1, [])
    assert "budget must lie between 0 and 1, got 2.0" in said.err


def test_view(remixer_says, tmp_path):
    page = tmp_path / "page.html"
    said = remixer_says("view", "commanded:encoder", "--mixer", "toeplitz", "--html", page, "--json")
    assert said.data == {"out": str(page), "bytes": page.stat().st_size}
    assert "toeplitz" in page.read_text(encoding="utf-8")
    said = remixer_says("view", "commanded:encoder", "--html", tmp_path / "no" / "page.html")
    assert (said.code, said.out) == (1, "")
    assert "there is no folder" in said.err


def test_a_plan_is_made_of_what_a_model_was(remixer_says, tmp_path):
    said = remixer_says("plan", "commanded:rewritten", "--data", tmp_path, "--out", tmp_path / "plan.json")
    assert said.code == 1
    assert "is rewritten already: give the model that it was made from" in said.err
