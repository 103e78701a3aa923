"""Of what made a file, and whether that can be read here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata

import torch

PACKAGES = ("remixer", "torch")


def versions() -> dict[str, str]:
    """Of remixer and torch, as artifacts note them."""
    return {"remixer": metadata.version("remixer"), "torch": torch.__version__.split("+")[0]}


def too_new(made: Mapping[str, str]) -> str:
    """Which package is of an earlier version here than where a file was made, or "".

    Examples:
        >>> too_new({"remixer": "0.0.1", "torch": "99.1.2"})[:29]
        'it was written by torch 99.1.'
    """
    here = versions()
    for name in PACKAGES:
        if name not in made:
            return f"it doesn't say which {name} wrote it"
        if _release(made[name]) > _release(here[name]):
            return (
                f"it was written by {name} {made[name]}, this is {here[name]}, which may not know all of it: "
                f"pip install '{name}>={made[name]}'"
            )
    return ""


def _release(version: str) -> tuple[int, ...]:
    """Its first two numbers: releases that differ in the third read each other's files."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return tuple(map(int, found.groups())) if found else (10**9,)
