"""Mixers as people ask for them on a command line: `long_short`, `'encoder.*=long_short(window=64)'`."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from remixer.mixers import MixerConfig
    from remixer.planning.plan import Plan

_ASKED = re.compile(r"(?:(?P<pattern>.+?)=)??\s*(?P<name>[A-Za-z_]\w*)\s*(?:\((?P<options>.*)\))?\s*", re.DOTALL)
_KEPT = ("none", "None")


def mapping_of(asked: Sequence[str]) -> dict[str, MixerConfig | None]:
    """What `remix` takes for a mixer: patterns of sites with configs, in their order.

    Args:
        asked: `mixer`, `mixer(option=value)`, either with `pattern=` in front; the mixer "none" keeps what a pattern
            matches. Without a pattern it is for all sites.

    Raises:
        typer.BadParameter: it isn't written so, or a pattern comes twice.
        UnknownMixerError: no mixer has this name.
        MixerConfigError: the mixer can't have these options.

    Examples:
        >>> mapping_of(["encoder.*=none", "long_short(window=64)"])["*"].window
        64
    """
    found: dict[str, MixerConfig | None] = {}
    for one in asked:
        pattern, config = _read(one)
        if pattern in found:
            raise typer.BadParameter(f"two mixers are given for {pattern!r}; the first pattern that matches counts")
        found[pattern] = config
    return found


def configs_of(asked: Sequence[str]) -> list[MixerConfig]:
    """Mixers to choose from, without patterns; raises as `mapping_of` does."""
    found = []
    for one in asked:
        pattern, config = _read(one)
        if config is None or pattern != "*":
            raise typer.BadParameter(
                f"a plan finds out itself what goes where: give mixers without patterns, not {one!r}"
            )
        found.append(config)
    return found


def choice_of(asked: Sequence[str], plan: Path | None) -> dict[str, MixerConfig | None] | Plan:
    """What `--mixer` and `--plan` ask for; raises as `mapping_of` and `Plan.load` do."""
    if bool(asked) == (plan is not None):
        raise typer.BadParameter("give either --mixer, as often as you like, or --plan")
    if plan is None:
        return mapping_of(asked)
    from remixer.planning.plan import Plan

    return Plan.load(plan)


def _read(asked: str) -> tuple[str, MixerConfig | None]:
    match = _ASKED.fullmatch(asked)
    if match is None:
        raise typer.BadParameter(
            f"can't read the mixer {asked!r}: write a name such as long_short, options as in long_short(window=64), "
            "and in front what it is for, as in 'encoder.*=long_short'"
        )
    pattern, name, written = match["pattern"] or "*", match["name"], match["options"]
    if name in _KEPT and written is None:
        return pattern, None
    from remixer.mixers import MixerConfigError, get

    config, options = get(name).Config, _options(asked, written or "")
    known = [field.name for field in fields(config)]
    if unknown := [option for option in options if option not in known]:
        raise MixerConfigError(f"{name!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return pattern, config(**options)


def _options(asked: str, written: str) -> dict[str, Any]:
    """Options by name; their values are literals, and nothing else is ever evaluated."""
    try:
        call = ast.parse(f"f({written})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("options are written name=value")
        named = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
        if len(named) < len(call.keywords):
            raise ValueError("options are written name=value")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        told = "options are numbers, True, False, None, and texts in quotes"
        why = str(error) if str(error).startswith("options") else told
        raise typer.BadParameter(f"can't read the options of {asked!r}: {why}, as in long_short(window=64)") from error
    return named
