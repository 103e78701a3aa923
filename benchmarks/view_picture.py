"""The picture of docs/view.md: MiniLM with `long_short`, one attention open, as Chromium shows it.

Run: `make picture`, or `python benchmarks/view_picture.py docs/pictures/view.png [--dark]`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from pretrained import minilm, padded_batch

import remixer


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        parser.error("there is no Chromium: `make browser` installs it")
    model, _ = minilm("eager")
    small = remixer.remix(model, "long_short", padded_batch(2, 32, 20000), trace=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = remixer.view(small, Path(folder) / "view.html")
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        scheme = "dark" if options.dark else "light"
        tab = chromium.new_page(viewport={"width": 1500, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        tab.goto(page.as_uri())
        tab.locator(".sites button").first.click()
        tab.screenshot(path=options.picture)
        chromium.close()


if __name__ == "__main__":
    main()
