"""Artifacts on the command line: where they go, and the tokenizer that lies beside them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remixer.commands.models import ARTIFACT, TOKENIZER
from remixer.commands.progress import doing

if TYPE_CHECKING:
    from remixer.remixed import Remixed


def check_folder(folder: Path, marker: str) -> None:
    """Raise before any work is done where something else lies that a folder is to be written to.

    Args:
        folder: to write to; what was written there before may be replaced.
        marker: the file that tells what was written before.

    Raises:
        ValueError: it can't be made, or holds something else.
    """
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {folder.parent} to make {folder.name} in")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the name of a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise ValueError(f"{folder} holds something else than what would be written: give the name of another folder")


def save(model: Remixed, folder: Path, tokenizer: Any, *, original: bool) -> None:
    """Save a rewritten model, and its tokenizer in a folder beside it."""
    import remixer

    with doing(f"saving to {folder}"):
        remixer.save(model, folder, original=original)
        if tokenizer is None:
            return
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{TOKENIZER}.") as name:
            draft = Path(name) / TOKENIZER
            tokenizer.save_pretrained(draft)
            shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
            draft.rename(folder / TOKENIZER)


def check_artifact(folder: Path) -> None:
    """See `check_folder`; where an artifact is to be written."""
    check_folder(folder, ARTIFACT)
