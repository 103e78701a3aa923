"""Links from pages to files of the repository: the site carries a copy of each file that is linked to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)\)")


def _target(page: str, link: str) -> str | None:
    """The file or folder of the repository that a page's link leads to, or None if that is a page."""
    found = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if found.startswith("docs/") else found


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    for page in list(files.documentation_pages()):
        for _, link in LINK.findall(page.content_string):
            target = _target(page.src_uri, link)
            if target is None:
                continue
            if not (ROOT / target).exists():
                raise FileNotFoundError(f"docs/{page.src_uri} links to {target}, which is not there")
            name = f"source/{target}"
            if (ROOT / target).is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links lead to the copies; a link to a folder becomes its text."""

    def changed(match: re.Match[str]) -> str:
        target = _target(page.file.src_uri, match[2])
        if target is None:
            return match[0]
        up = "../" * page.file.src_uri.count("/")
        return f"[{match[1]}]({up}source/{target})" if (ROOT / target).is_file() else match[1]

    return LINK.sub(changed, markdown)
