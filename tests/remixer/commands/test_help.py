"""Help is there for every command, with an example, and at once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from remixer.cli import COMMANDS

NAMES = ["explain", "remix", "transfer", "plan", "export", "partition", "run", "generate", "bench", "mixers", "view"]


def test_all_commands_are_there(remixer_says):
    said = remixer_says("--help")
    assert said.code == 0
    assert sorted(command.__name__ for command in COMMANDS) == sorted(NAMES)
    for name in NAMES:
        assert re.search(rf"^  {name} ", said.out, re.MULTILINE), name


@pytest.mark.parametrize("name", NAMES)
def test_each_has_an_example_and_the_common_options(remixer_says, name):
    said = remixer_says(name, "--help")
    assert said.code == 0
    assert re.search(rf"Example: (torchrun .* -m )?remixer {name} ", said.out), said.out
    assert "--json" in said.out
    assert "--debug" in said.out


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from remixer.cli import app; "
        "assert not CliRunner().invoke(app, ['remix', '--help']).exception; "
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'onnx', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_page_asks_for_what_there_is(remixer_says):
    page = (Path(__file__).parents[3] / "docs" / "command_line.md").read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    asked = re.findall(r"^remixer (\w+)(.*)$", shell, re.MULTILINE) + re.findall(
        r"^\| `(\w+) ([^`]*)`", page, re.MULTILINE
    )
    assert {name for name, _ in asked} == set(NAMES)
    for name, words in asked:
        told = remixer_says(name, "--help").out
        for option in re.findall(r"--[a-z-]+", words):
            assert f"{option} " in told, (name, option)


def test_what_is_no_command(remixer_says):
    said = remixer_says("remicks")
    assert said.code == 2
    assert "No such command 'remicks'" in said.err
