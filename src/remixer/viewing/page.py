"""One HTML file that needs nothing else: style, code and data stand in it."""

from __future__ import annotations

import html
import re
from importlib.resources import files

_ASSETS = files("remixer.viewing") / "assets"
STYLES = ("page.css", "graph.css")
SCRIPTS = (
    "data.js",
    "elements.js",
    "make.js",
    "words.js",
    "changes.js",
    "tree.js",
    "solve.js",
    "layout.js",
    "drawing.js",
    "pane.js",
    "facts.js",
    "panel.js",
    "sites.js",
    "search.js",
    "passes.js",
    "main.js",
)


def page(title: str, payload: str) -> str:
    """The page of a title and a payload that holds no "<"."""
    parts = {
        "title": html.escape(title),
        "style": "\n".join(map(_asset, STYLES)),
        "payload": payload,
        "licence": _asset("dagre.LICENSE.txt"),
        "dagre": _without_map(_asset("dagre.min.js")),
        "script": "\n".join(map(_asset, SCRIPTS)),
    }
    # In one go: what stands in a part is never taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _without_map(script: str) -> str:
    """A script without the address of its source map, which browsers would ask for."""
    return re.sub(r"^//# sourceMappingURL=.*$", "", script, flags=re.MULTILINE)
