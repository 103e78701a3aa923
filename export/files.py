"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which gets its name when all is written."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        yield draft
        os.replace(draft, path)


def publish(draft: Path, folder: Path, last: str) -> None:
    """Move finished files to where they belong, one of them last: who sees it sees all of them."""
    for file in sorted(draft.iterdir(), key=lambda each: each.name == last):
        os.replace(file, folder / file.name)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
