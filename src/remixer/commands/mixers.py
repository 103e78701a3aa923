"""`remixer mixers`: which mixers there are, and their options."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from remixer.commands.answering import Answer

if TYPE_CHECKING:
    from remixer.mixers import MixerConfig


def mixers(
    name: Annotated[str | None, typer.Argument(help="A mixer to tell all about.")] = None,
) -> Answer:
    """List the mixers, third parties' included, with their options.

    Example: remixer mixers long_short
    """
    from remixer.mixers import available, get

    if name is not None:
        config = get(name).Config
        return Answer(Group(_table([_record(name, config)]), Text(""), Text(_page(config))), _record(name, config))
    records = [_record(each, get(each).Config) for each in available()]
    return Answer(_table(records), {"mixers": records})


def _record(name: str, config: type[MixerConfig]) -> dict[str, Any]:
    options = [
        {"name": field.name, "type": str(field.type), "default": _default(field)}
        for field in dataclasses.fields(config)
    ]
    return {
        "name": name,
        "what": " ".join(_page(config).partition("\n\n")[0].split()),
        "class": config.__name__,
        "options": options,
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _page(config: type[MixerConfig]) -> str:
    return inspect.getdoc(config) or ""


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for record in records:
        options = ", ".join(f"{option['name']}={option['default']!r}" for option in record["options"])
        table.add_row(record["name"], record["what"])
        table.add_row("", options or "no options")
    return table
