"""The pages of docs/ are true: their code runs, in its order."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
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
        3,
        ("torch.Size([2, 24])", "as before: True", "transformer.h.0.attn.key", "as transformers writes: True"),
        set(),
    ),
    "artifacts.md": (
        2,
        ("BertModel: 2 attentions: 2 replaced", "the same numbers: True", "BaseModelOutput", "softmax long_short"),
        {"artifact"},
    ),
    "fine_tuning.md": (4, ("losses", "train_loss"), {"half.pt", "trained"}),
}


@pytest.mark.parametrize("page", PAGES)
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
