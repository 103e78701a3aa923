"""The pages of docs/ are true: their code runs, in its order."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SLOW = {"tutorial.md"}  # a real model, its transfer and its ONNX file
# Each page's blocks of code, what they print, and the files they write.
PAGES = {
    "evaluation.md": (
        4,
        (
            "long_short",
            "after 32 to 63 tokens",
            "secret 64 back",
            "parameters",
            "seconds, 512",
            "times the original's",
        ),
        {"evaluation.png"},
    ),
    "transfer.md": (
        3,
        ("attention: 4 steps", "harm if replaced alone", "<- this plan"),
        {"transfer.safetensors", "transfer.png", "plan.json"},
    ),
    "generation.md": (
        4,
        (
            "torch.Size([2, 24])",
            "as before: True",
            "transformer.h.0.attn.key",
            "translated: torch.Size([2, 13])",
            "as transformers writes: True",
        ),
        set(),
    ),
    "artifacts.md": (
        2,
        ("BertModel: 2 attentions: 2 replaced", "the same numbers: True", "BaseModelOutput", "softmax long_short"),
        {"artifact"},
    ),
    "view.md": (1, ("11 graphs",), {"small.html", "model.html"}),
    "in_place.md": (
        2,
        ("transformer.h.1.attn.mixer.pooling", "long_short", "as saved: True", "mixers left: []"),
        {"small"},
    ),
    "fine_tuning.md": (4, ("losses", "train_loss"), {"half.pt", "trained"}),
    "tutorial.md": (
        7,
        ("6 attentions: 6 understood", "grows as n", "the same after loading: True", "calls compared", "tokens read: "),
        {"small", "small.onnx", "small.onnx.json"},
    ),
    "index.md": (1, ("4 attentions: 4 understood", "torch.Size([1, 5000, 64])"), set()),
    "mixing_matrices.md": (1, ("softmax: rows sum to 1.000", "toeplitz: rows sum to 1.000"), set()),
    "how_to/own_model.md": (3, ("causal", "('2', 'toeplitz')"), set()),
    "how_to/own_mixer.md": (2, ("torch.Size([2, 4, 9, 8])",), set()),
    "how_to/own_rule.md": (2, ("1 rewrite; MergeScales", "x, 8.0"), set()),
    "how_to/own_pass.md": (2, ("new='relu'): 1 rewrites", "True"), set()),
    "how_to/unit_tests.md": (4, ("NegativeScale", "grows as n^2, at most n log n"), set()),
    "how_to/debugging.md": (3, ("missed |", "kept", "nodes"), set()),
}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES]
)
def test_its_python_runs(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    count, printed, files = PAGES[page]
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    names = {}
    for block in blocks:
        exec(compile(block, f"docs/{page}", "exec"), names)
    told = capsys.readouterr().out
    for words in printed:
        assert words in told, words
    assert {file.name for file in tmp_path.iterdir()} == files


def test_the_figures_of_fine_tuning_are_those_of_the_results():
    result = json.loads((ROOT / "benchmarks" / "results" / "fine_tuning.json").read_text(encoding="utf-8"))
    page = (DOCS / "fine_tuning.md").read_text(encoding="utf-8")
    for row in result["rows"]:
        cells = (row["mixer"], row["transfer_steps"], row["trained"], f"{row['loss']:.2f}", f"{row['accuracy']:.0%}")
        assert "| " + " | ".join(map(str, cells)) + " |" in page
    assert result["command"] in page


def test_the_figures_of_artifacts_are_those_of_the_results():
    result = json.loads((ROOT / "benchmarks" / "results" / "artifacts.json").read_text(encoding="utf-8"))
    page = (DOCS / "artifacts.md").read_text(encoding="utf-8")
    for row in result["rows"]:
        seconds = (f"{row[name]:.2f} s" for name in ("save CPU s", "load CPU s"))
        sizes = (f"{row['weights MB']:.1f} MB", f"{row['graph MB']:.2f} MB", row["nodes"])
        cells = (row["model"], "yes" if row["original"] else "no", *seconds, *sizes)
        assert "| " + " | ".join(map(str, cells)) + " |" in page
        assert row["same outputs"]
    assert result["command"] in page
