"""Real text that every machine has: the modules of Python's standard library, split by file."""

from __future__ import annotations

import sysconfig
from pathlib import Path

# Tests, tables of characters and of topics, and what isn't part of it.
SKIPPED = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "__phello__"}


def modules(*packages: str) -> dict[str, bytes]:
    """The sources of some packages, or of the whole library.

    Args:
        packages: names of top-level folders; none is everything.

    Returns:
        The bytes of every module by its path, in the order of paths.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    roots = [library / package for package in packages] or [library]
    paths = sorted(path for root in roots for path in root.rglob("*.py"))
    relative = {path: path.relative_to(library) for path in paths}
    return {name.as_posix(): path.read_bytes() for path, name in relative.items() if not SKIPPED & set(name.parts)}


def by_size(sources: dict[str, bytes]) -> list[str]:
    """The paths of sources, the largest first."""
    return sorted(sources, key=lambda name: (-len(sources[name]), name))


def split(sources: dict[str, bytes], one_in: int) -> tuple[bytes, bytes]:
    """What to train on and what to test on, each in one piece: of the files, by size, one in so many is held out."""
    held_out = set(by_size(sources)[1::one_in])
    train = b"".join(text for name, text in sources.items() if name not in held_out)
    return train, b"".join(text for name, text in sources.items() if name in held_out)
