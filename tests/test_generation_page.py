"""docs/generation.md is true: its code runs, in its order."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "generation.md"


def test_its_python_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, "docs/generation.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("torch.Size([2, 24])")
    assert [printed[4], printed[6]] == ["True", "True"]
    assert "transformer.h.0.attn.key" in printed[5]
