"""docs/evaluation.md is true: its code runs, in its order."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"


def test_its_python_runs_and_prints_a_table(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, "docs/evaluation.md", "exec"), names)
    printed = capsys.readouterr().out
    for words in (
        "long_short",
        "after 32 to 63 tokens",
        "secret 64 back",
        "parameters",
        "seconds, 512",
        "times the original's",
    ):
        assert words in printed, words
    assert {file.name for file in tmp_path.iterdir()} == {"evaluation.png"}
