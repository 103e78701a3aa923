"""What all commands have in common: the answer goes to stdout, as text or JSON, all else to stderr, and a code out."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console, RenderableType

FAILED, NOTHING, INTERRUPTED = 1, 3, 130  # 0 is well, and 2 a command that can't be understood
WIDTH = 150  # of text that goes to a file

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON on stdout; all else goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]


class NothingReplacedError(ValueError):
    """Not one attention could be replaced.

    Attributes:
        data: what is known of the model all the same.
    """

    def __init__(self, message: str, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.data = data


@dataclass(frozen=True)
class Answer:
    """What a command has to say.

    Attributes:
        told: for people: text, or anything that rich prints; None where it was said already.
        data: the same for programs.
        code: that the process ends with.
    """

    told: RenderableType | None
    data: Mapping[str, Any]
    code: int = 0


def answering(command: Callable[..., Answer | None]) -> Callable[..., None]:
    """A function as a command: with `--json` and `--debug`, its answer printed, its errors one sentence and a code.

    Args:
        command: gives its answer, or None where another process does. What it prints itself goes to stderr under
            `--json`; if it wants to know, it has an argument `as_json`.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    knows = "as_json" in signature.parameters

    @functools.wraps(command)
    def run(*, debug: bool, **given: Any) -> None:
        as_json = given["as_json"] if knows else given.pop("as_json")
        with _ending(command.__name__, as_json, debug):
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                answer = command(**given)
            if answer is not None:
                _say(answer, as_json)
                if answer.code:
                    raise typer.Exit(answer.code)

    added = {} if knows else {"as_json": AsJson}
    parameters = [each.replace(annotation=hints[name]) for name, each in signature.parameters.items()]
    for name, annotation in {**added, "debug": Debug}.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@contextlib.contextmanager
def _ending(name: str, as_json: bool, debug: bool) -> Iterator[None]:
    """Turns what goes wrong into a sentence on stderr and the process's code."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except typer.BadParameter as error:
        if as_json:
            _print_json({"error": {"kind": "usage", "message": error.message}})
        raise
    except KeyboardInterrupt:
        _complain(f"remixer {name}: interrupted; nothing was left half-written")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = sentence(error)
        _complain(f"remixer {name}: {told}")
        known = {"kind": type(error).__name__, "message": told}
        if as_json:
            _print_json({**_data_of(error), "error": known})
        raise typer.Exit(_code_of(error)) from None


def sentence(error: Exception) -> str:
    """What to tell of an error: the library's own words, or that it is none of the library's."""
    told = str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, KeyError):
        told = str(error.args[0]) if error.args else ""  # KeyError quotes what it says
    if type(error).__module__.partition(".")[0] == "remixer" or (isinstance(error, ValueError) and _is_ours(error)):
        return told
    if isinstance(error, ImportError) and _is_ours(error):
        return told
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}. That is none of remixer's own errors; --debug shows where it comes from"


def _is_ours(error: Exception) -> bool:
    """Whether remixer's own code raised it."""
    last = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        last = frame.f_globals.get("__name__", "")
    return last is not None and last.partition(".")[0] == "remixer"


def _code_of(error: Exception) -> int:
    from remixer.errors import NoAttentionError

    return NOTHING if isinstance(error, (NothingReplacedError, NoAttentionError)) else FAILED


def _data_of(error: Exception) -> dict[str, Any]:
    from remixer.errors import NoAttentionError

    if isinstance(error, NothingReplacedError):
        return error.data
    return {"report": error.report.to_dict()} if isinstance(error, NoAttentionError) else {}


def _complain(words: str) -> None:
    Console(stderr=True, soft_wrap=True).print(words, style="red", highlight=False, markup=False)


def _say(answer: Answer, as_json: bool) -> None:
    if as_json:
        _print_json(answer.data)
    elif answer.told is not None:
        console = Console(width=None if sys.stdout.isatty() else WIDTH, soft_wrap=isinstance(answer.told, str))
        console.print(answer.told, highlight=False, markup=False)


def _print_json(data: Mapping[str, Any]) -> None:
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that aren't finite are null, and what else it doesn't know is text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
