"""The README is true: its code runs, its commands exist, its figures come from files."""

import re
from pathlib import Path

import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python_runs_and_prints_a_report(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "4 attentions: 4 understood; grows as n^2" in printed
    assert "torch.Size([1, 5000, 64])" in printed
    assert printed.count("torch.Size([2, 36])") == 2
    assert {file.name for file in tmp_path.iterdir()} == {"small", "model.onnx", "model.onnx.json", "decoder", "parts"}
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    for line in shown[1].splitlines():
        if line != "...":
            for cell in re.split(r"\s{2,}", line):
                assert cell in printed, cell


def test_its_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = re.findall(r"make ([\w-]+)", README)
    assert {"demo", "test"} <= set(commands) <= targets


def test_its_figures_are_those_of_the_results():
    assert tables.between(tables.README) == tables.headlines()


def test_the_page_of_results_has_all_of_them():
    assert tables.between(tables.RESULTS) == tables.page()
    shown = {name for names in tables.SECTIONS.values() for name in names}
    assert set(tables.SHOWN) <= shown
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for result in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f"/{result.name})" in pages, result.name


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_the_ci_runs_the_command_for_tests():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
