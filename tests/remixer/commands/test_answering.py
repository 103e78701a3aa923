"""What all commands have in common."""

import json
import math

import pytest
import typer
from typer.testing import CliRunner

import remixer
from remixer.commands.answering import Answer, AsJson, NothingReplacedError, answering


def say(command, *args):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(answering(command))
    return CliRunner().invoke(app, list(args))


def chatty(times: int = 1) -> Answer:
    for _ in range(times):
        print("from a library")
    return Answer("well [done]", {"numbers": [1, 2.5, math.nan, math.inf], "times": times})


def test_an_answer_for_people_and_one_for_programs():
    told = say(chatty)
    assert (told.exit_code, told.stdout) == (0, "from a library\nwell [done]\n")
    told = say(chatty, "--json", "--times", "2")
    assert json.loads(told.stdout) == {"numbers": [1, 2.5, None, None], "times": 2}
    assert told.stderr == "from a library\n" * 2


def failing(kind: str) -> Answer:
    raise {
        "ours": remixer.CaptureError("the inputs don't fit"),
        "plain": ValueError("in a foreign tongue\nand more"),
        "disk": OSError(28, "No space left on device", "x.onnx"),
        "nothing": NothingReplacedError("not one", {"report": {"sites": []}}),
        "usage": typer.BadParameter("give a or b, not both"),
    }[kind]


@pytest.mark.parametrize(("kind", "code", "told"), [
    ("ours", 1, "remixer failing: the inputs don't fit\n"),
    ("plain", 1, "remixer failing: ValueError: in a foreign tongue. That is none of remixer's own errors; --debug"),
    ("disk", 1, "remixer failing: No space left on device: x.onnx\n"),
    ("nothing", 3, "remixer failing: not one\n"),
])  # fmt: skip
def test_errors_are_one_sentence_and_a_code(kind, code, told):
    said = say(failing, kind)
    assert said.exit_code == code
    assert said.stderr.startswith(told)
    assert said.stderr.count("\n") == 1
    assert said.stdout == ""


def test_errors_for_programs():
    found = json.loads(say(failing, "nothing", "--json").stdout)
    assert found == {"report": {"sites": []}, "error": {"kind": "NothingReplacedError", "message": "not one"}}
    said = say(failing, "usage", "--json")
    assert said.exit_code == 2
    assert json.loads(said.stdout) == {"error": {"kind": "usage", "message": "give a or b, not both"}}
    assert "give a or b, not both" in said.stderr


def test_tracebacks_only_if_asked_for():
    assert "Traceback" not in say(failing, "ours").stderr
    assert "CaptureError: the inputs don't fit" in say(failing, "ours", "--debug").stderr


def interrupted() -> Answer:
    raise KeyboardInterrupt


def test_an_interruption():
    said = say(interrupted)
    assert (said.exit_code, said.stdout) == (130, "")
    assert said.stderr == "remixer interrupted: interrupted; nothing was left half-written\n"


def misunderstood() -> Answer:
    raise typer.BadParameter("give either one")


def test_usage():
    said = say(misunderstood)
    assert said.exit_code == 2
    assert "give either one" in said.stderr


def partly() -> Answer:
    return Answer("nothing here", {"found": 0}, 3)


def test_an_answer_has_a_code():
    assert (say(partly).exit_code, say(partly).stdout) == (3, "nothing here\n")


def knowing(as_json: AsJson = False) -> Answer:
    return Answer(None, {"json": as_json})


def test_a_command_may_want_to_know():
    assert json.loads(say(knowing, "--json").stdout) == {"json": True}
    assert say(knowing).stdout == ""


def elsewhere() -> None:
    return None


def test_another_process_may_answer():
    assert (say(elsewhere).exit_code, say(elsewhere).stdout) == (0, "")
