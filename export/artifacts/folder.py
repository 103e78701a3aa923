"""An artifact's folder: files under names that tell their content, and a manifest that says which of them count.

The manifest comes last and at once, so a save that is cut off leaves what was there before: its files are still there,
since files of other content have other names. Nothing is read that the manifest doesn't name, and it can name files of
this one form only, in this folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remixer.export.errors import ArtifactError
from remixer.export.files import digest
from remixer.export.typed import TypedError, parsed, read_text, typed
from remixer.mixers import MixerConfigError, UnknownMixerError

MANIFEST = "remixer.json"
DRAFT = ".draft-"
FORMAT = 1
Part = Literal["graph", "weights", "example", "original", "original_weights"]
SUFFIXES: dict[Part, str] = {
    "graph": "json",
    "weights": "safetensors",
    "example": "safetensors",
    "original": "json",
    "original_weights": "safetensors",
}
_OURS = re.compile(rf"({'|'.join(SUFFIXES)})\.[0-9a-f]{{12}}\.(json|safetensors)")


@dataclass(frozen=True)
class FileRecord:
    """A file of an artifact.

    Attributes:
        name: in the folder.
        sha256: of its content.
        bytes: how many it has.
    """

    name: str
    sha256: str
    bytes: int


def write(folder: Path, parts: Mapping[Part, Callable[[Path], None]], told: Mapping[str, Any]) -> None:
    """Write an artifact; what was in the folder before stays whole until the new one is.

    Args:
        folder: made if it doesn't exist; its parent must.
        parts: what writes each file.
        told: what else the manifest says.

    Raises:
        ArtifactError: the folder can't be written to, or another process saves to it.
    """
    if not folder.parent.is_dir():
        raise ArtifactError(f"there is no folder {folder.parent} to make {folder.name} in")
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: give a folder")
    try:
        folder.mkdir(exist_ok=True)
        with _alone(folder):
            draft = Path(tempfile.mkdtemp(dir=folder, prefix=DRAFT))
            try:
                files = {part: _written(part, write, draft) for part, write in parts.items()}
                text = json.dumps({"format": FORMAT, "files": _plain(files), **told}, indent=1, allow_nan=False)
                (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
                names = [file.name for file in files.values()]
                for name in (*names, MANIFEST):
                    os.replace(draft / name, folder / name)
                _tidy(folder, names)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"can't write to {folder}: {error}") from error


@dataclass(frozen=True)
class Folder:
    """An artifact to be read.

    Attributes:
        path: of the folder.
        told: all that the manifest says.
        files: that it names.
    """

    path: Path
    told: Mapping[str, Any]
    files: Mapping[Part, FileRecord]

    @classmethod
    def of(cls, path: Path) -> Folder:
        """The artifact in a folder; none of its files is read yet but the manifest.

        Raises:
            ArtifactError: there is none, or it is of another format.
        """
        manifest = path / MANIFEST
        if not manifest.exists():
            raise ArtifactError(f"there is no {MANIFEST} in {path}: remixer.save writes one")
        with reading(manifest):
            told = parsed(read_text(manifest))
            if not isinstance(told, dict) or told.get("format") != FORMAT:
                found = told.get("format") if isinstance(told, dict) else None
                raise TypedError(f"it is of format {found!r:.40}, this remixer reads {FORMAT}")
            files = typed(dict[Part, FileRecord], told.get("files"), "files")
            for part, file in files.items():
                if not _OURS.fullmatch(file.name) or not file.name.startswith(f"{part}."):
                    raise TypedError(f"files.{part}: no artifact has a file {file.name!r:.80}")
                if not re.fullmatch("[0-9a-f]{64}", file.sha256) or file.bytes < 0:
                    raise TypedError(f"files.{part}: expected a SHA-256 and a number of bytes")
        return cls(path, told, files)

    def file(self, part: Part) -> Path:
        """The path of a file, which is whole and the one that was written.

        Raises:
            ArtifactError: it is not.
        """
        record = self.files.get(part)
        if record is None:
            raise ArtifactError(f"{self.path / MANIFEST} names no file of the {part.replace('_', ' ')}")
        path = self.path / record.name
        with reading(path):
            if not path.is_file():
                raise TypedError("this is no regular file" if path.exists() else "it is missing")
            if path.stat().st_size != record.bytes:
                raise TypedError(f"it has {path.stat().st_size:,} bytes, {record.bytes:,} were written: it was cut off")
            if digest(path) != record.sha256:
                raise TypedError("its content is not what was written: its checksum is another one")
        return path


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while this file is read is said of it.

    Raises:
        ArtifactError: always in the place of another error.
    """
    try:
        yield
    except ArtifactError:
        raise
    except (TypedError, UnknownMixerError, MixerConfigError, OSError) as error:
        raise ArtifactError(f"can't read {path}: {error}") from error
    except Exception as error:  # of torch or a mixer, about what a stranger wrote
        told = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {told[0]:.200}" if told else type(error).__name__
        raise ArtifactError(f"can't read {path}: it holds what no artifact does ({reason})") from error


def _written(part: Part, write: Callable[[Path], None], draft: Path) -> FileRecord:
    path = draft / part
    write(path)
    found = digest(path)
    name = f"{part}.{found[:12]}.{SUFFIXES[part]}"
    os.replace(path, draft / name)
    return FileRecord(name, found, (draft / name).stat().st_size)


def _plain(files: Mapping[Part, FileRecord]) -> dict[str, Any]:
    return {part: vars(file) for part, file in files.items()}


def _tidy(folder: Path, kept: list[str]) -> None:
    """Remove files of earlier artifacts, and what cut-off saves left behind."""
    for file in folder.iterdir():
        if _OURS.fullmatch(file.name) and file.name not in kept and (file.is_file() or file.is_symlink()):
            file.unlink()
        elif file.name.startswith(DRAFT) and file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process saves to the folder meanwhile; the system lets go of it when this process ends."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(f"another process is saving to {folder}") from None
        yield
    finally:
        os.close(held)
