"""The pages of docs/ are true: their code runs, in its order."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
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
