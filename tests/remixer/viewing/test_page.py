import json
import pickle
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from viewing_pages import EVIL, Evil, data_of

import remixer
from remixer.viewing.page import SCRIPTS, STYLES, page

ASSETS = Path(remixer.__file__).parent / "viewing" / "assets"


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and what stands in scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append("")

    def handle_data(self, data):
        if self.inside:
            self.inside[-1] += data

    def named(self, name):
        return [
            (attributes, text) for (tag, attributes), text in zip(self.tags, self.inside, strict=True) if tag == name
        ]


@pytest.fixture(scope="module")
def tags(page):
    return Tags(page.read_text(encoding="utf-8"))


def test_nothing_is_loaded(tags):
    loads = [value for _, attributes in tags.tags for name, value in attributes.items() if name in ("src", "href")]
    assert loads == ["data:,"]
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags.tags}
    styles = "".join(text for _, text in tags.named("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    scripts = "".join(text for _, text in tags.named("script"))
    assert "sourceMappingURL" not in scripts
    for asked in ("fetch(", "XMLHttpRequest", "import(", "WebSocket"):
        assert asked not in scripts, asked


def test_browsers_are_told_to_load_nothing(tags):
    (policy,) = [attributes for attributes, _ in tags.named("meta") if "http-equiv" in attributes]
    assert policy["content"].startswith("default-src 'none';")


def test_the_layout_library_comes_with_its_licence(page):
    text = page.read_text(encoding="utf-8")
    assert (ASSETS / "dagre.LICENSE.txt").read_text(encoding="utf-8") in text
    assert "Permission is hereby granted, free of charge" in text


def test_every_asset_is_used():
    files = {file.name for file in ASSETS.iterdir()}
    assert files == {*STYLES, *SCRIPTS, "page.html", "dagre.min.js", "dagre.LICENSE.txt"}


def test_scripts_put_text_in_as_text():
    for name in SCRIPTS:
        code = (ASSETS / name).read_text(encoding="utf-8")
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in code, name


def test_names_can_not_leave_their_place(tmp_path):
    path = remixer.view(Evil(), tmp_path / "evil.html", torch.zeros(2, 4))
    tags = Tags(path.read_text(encoding="utf-8"))
    scripts = tags.named("script")
    assert len(scripts) == 3
    data = json.loads(scripts[0][1])
    assert data["model"] == Evil.__name__
    assert EVIL in data["paths"]
    ((_, title),) = tags.named("title")
    assert title.strip() == f"{Evil.__name__} - remixer"


def test_what_stands_in_the_data_is_no_place_to_fill():
    text = page("{{style}}", '"{{script}} {{title}}"')
    assert '"{{script}} {{title}}"' in text
    assert "<title>{{style}}</title>" in text


def test_there_has_to_be_a_folder(tmp_path, traced):
    with pytest.raises(remixer.ViewError, match="there is no folder"):
        remixer.view(traced, tmp_path / "none" / "view.html")
    with pytest.raises(remixer.ViewError, match="is a folder: give the path of a file"):
        remixer.view(traced, tmp_path)


def test_a_page_is_whole_or_as_it_was(tmp_path, traced, monkeypatch):
    path = tmp_path / "view.html"
    path.write_text("old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("remixer.viewing.viewing.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remixer.view(traced, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["view.html"]


def test_a_model_from_a_pickle_is_shown_alone_and_the_page_says_so(tmp_path, small, x):
    lone = pickle.loads(pickle.dumps(remixer.remix(small, "toeplitz", x)))
    data = data_of(remixer.view(lone, tmp_path / "lone.html"))
    assert [stage["title"] for stage in data["stages"]] == ["after"]
    assert any("was made from is not there" in note for note in data["notes"])
    assert any("doesn't hold the shapes" in note for note in data["notes"])
    assert data["report"]["sites"][0]["status"] == "replaced"


@pytest.mark.parametrize("original", [True, False])
def test_a_loaded_model_is_shown_with_its_original_if_that_was_saved(tmp_path, traced, original):
    remixer.save(traced, tmp_path / "saved", original=original)
    loaded = remixer.load(tmp_path / "saved")
    data = data_of(remixer.view(loaded, tmp_path / "loaded.html"))
    assert [stage["title"] for stage in data["stages"]] == ["before", "after"][not original :]
    assert any("was made from is not there" in note for note in data["notes"]) != original
    assert len(data["report"]["sites"]) == 2
    labels = [[data["nodes"][number][2] for number in stage["nodes"]] for stage in data["stages"]]
    assert labels[-1].count("long_short") == 1
    if original:
        assert labels[0].count("softmax") == 2
    shapes = {value[0] for value in data["values"]}
    assert "(B, T, 16)" in shapes


def test_a_model_that_does_not_fit_its_inputs_writes_nothing(tmp_path, small):
    with pytest.raises(remixer.CaptureError):
        remixer.view(small, tmp_path / "view.html", torch.zeros(2, 8, 5))
    assert list(tmp_path.iterdir()) == []
