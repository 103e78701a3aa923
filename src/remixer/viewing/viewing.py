"""A model's graph as a page: `view`."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from remixer.export.files import whole
from remixer.rewrite.capture import Inputs
from remixer.viewing.errors import ViewError
from remixer.viewing.page import page
from remixer.viewing.payload import payload_of
from remixer.viewing.tracing import story_of


def view(model: nn.Module | ExportedProgram, path: str | os.PathLike[str], inputs: Inputs | None = None) -> Path:
    """Write a model's graph as one HTML file that needs no network, to open in a browser.

    A rewritten model is shown beside what it was made from. If it was made with `remix(..., trace=True)`, a slider
    shows the graph after every pass. Any other model is captured, and shown with the attentions that were recognised
    in it, and the reasons where one was not. Boxes are modules, and open to what is in them; what differs is coloured.

    Args:
        model: what `remixer.remix` or `remixer.load` gave, or any model that `remixer.explain` takes.
        path: of the file, in a folder that exists. It is written whole or not at all.
        inputs: example inputs of a model that isn't rewritten; not looked at otherwise.

    Returns:
        The path.

    Raises:
        ViewError: there is no such folder, or the path is a folder itself.
        CaptureError: the inputs don't fit the model, or torch.export refuses it.

    Examples:
        >>> import tempfile, torch
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        >>> folder = tempfile.mkdtemp()
        >>> view(layer, f"{folder}/layer.html", torch.zeros(2, 8, 32)).name
        'layer.html'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ViewError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to: make it first")
    if path.is_dir():
        raise ViewError(
            f"{str(path)!r} is a folder: give the path of a file in it, such as {str(path / 'view.html')!r}"
        )
    story = story_of(model, inputs)
    text = page(f"{story.model} - remixer", payload_of(story))
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path
