"""What perplexity.py and needle.py write, on a tiny model, beside the same worked out here."""

import json
import math
import sys

import needle
import perplexity
import pytest
import torch
import torch.nn.functional as F
from torch import nn

CUE = [5, 6, 7]
IDS = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(7))


class Means(nn.Module):
    """Logits from the mean of all tokens so far."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40000, 4), nn.Linear(4, 40000)

    def forward(self, input_ids, attention_mask):
        states = self.embedding(input_ids).cumsum(1) / attention_mask.cumsum(1)[..., None]
        return {"logits": self.head(states)}


@pytest.fixture
def models():
    return Means(), Means()


@pytest.fixture
def result(models, monkeypatch, tmp_path):
    original, rewritten = models

    def of(benchmark):
        monkeypatch.setattr(benchmark, "smollm2", lambda: (original, lambda text: {"input_ids": CUE}))
        monkeypatch.setattr(benchmark, "standard_library_windows", lambda tokenizer, count, length: IDS)
        monkeypatch.setattr(benchmark.remixer, "remix", lambda model, config, inputs: rewritten)
        monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
        out = tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(out)])
        benchmark.main()
        return json.loads(out.read_text())["rows"]

    return of


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids, torch.ones_like(ids))["logits"]


def test_perplexity_is_that_of_the_formula(models, result):
    full, *others = result(perplexity)
    losses = [
        [float(F.cross_entropy(logits[:-1], ids[1:])) for logits, ids in zip(logits_of(model, IDS), IDS, strict=True)]
        for model in models
    ]
    assert full.keys() == {"mixer", "perplexity", "ratio", "seconds"}
    assert full["perplexity"] == pytest.approx(math.exp(sum(losses[0]) / 2), rel=1e-5)
    assert [row["mixer"] for row in others] == list(perplexity.CONFIGS)
    assert others[0].keys() == {"mixer", "perplexity", "ratio", "error", "seconds"}
    assert others[0]["ratio"] == pytest.approx(math.exp((sum(losses[1]) - sum(losses[0])) / 2), rel=1e-5)


def test_needle_is_that_of_the_formula(models, monkeypatch, result):
    monkeypatch.setattr(needle, "BACK", (20, 40))
    rows = result(needle)
    assert [row["mixer"] for row in rows[:2]] == ["full attention", "full attention, another secret planted"]
    assert [row["mixer"] for row in rows[2:]] == list(needle.configs(64))
    assert all(row.keys() == {"mixer", "first", "rest", "top1"} for row in rows)
    generator = torch.Generator().manual_seed(0)
    found = {"planted": [], "others": [], "rewritten": []}
    for text in IDS:
        secret, other = (torch.randint(1000, 40000, (8,), generator=generator) for _ in range(2))
        back = int(torch.randint(20, 40, (1,), generator=generator))
        body, cue = text[: 60 - 2 * 3 - 2 * 8], torch.tensor(CUE)
        at = len(body) + 3 + 8 - back
        for name, model, planted in (
            ("planted", models[0], secret),
            ("others", models[0], other),
            ("rewritten", models[1], secret),
        ):
            ids = torch.cat([body[:at], cue, planted, body[at:], cue, secret])[None]
            chances = logits_of(model, ids)[0, -9:-1].log_softmax(-1)
            found[name].append(chances.gather(1, secret[:, None])[:, 0])
    for row, name in zip(rows, found, strict=False):
        chances = torch.stack(found[name])
        assert row["first"] == pytest.approx(float(chances[:, 0].mean()), rel=1e-5)
        assert row["rest"] == pytest.approx(float(chances[:, 1:].mean()), rel=1e-5)
