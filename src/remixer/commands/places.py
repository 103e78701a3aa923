"""Names of files that are to be written, looked at before any work is done."""

from __future__ import annotations

from pathlib import Path


def check_place(path: Path | None, what: str) -> None:
    """Raise before any work is done where a file could not be written in the end.

    Args:
        path: of a file that is to be written, or None.
        what: it is, with its article, for the error.

    Raises:
        ValueError: its folder doesn't exist, or it is a folder itself.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {what} {path.name} to")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {what} needs the name of a file")


def check_picture(path: Path | None) -> None:
    """`check_place` for a picture, and raise where nothing here could draw it.

    Raises:
        ValueError: as `check_place`, or its name has no ending that matplotlib knows.
        ImportError: matplotlib is missing.
    """
    check_place(path, "a picture")
    if path is None:
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'remixer[demo]'") from error
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ValueError(f"a picture's name needs an ending such as .png or .svg, got {path.name!r}")
