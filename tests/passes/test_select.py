"""Patterns of names."""

import pytest

from remixer import SoftmaxConfig
from remixer.passes.errors import SelectionError
from remixer.passes.select import Selection, matches

NAMES = ["layers.0.attn", "layers.1.attn", "layers.10.attn", "head.attn[1]"]


def test_the_first_pattern_that_matches_wins():
    config = SoftmaxConfig()
    selection = Selection.of({"layers.1.*": None, "layers.*": config})
    assert [selection.config_for(name) for name in NAMES] == [config, None, config, None]


@pytest.mark.parametrize(("pattern", "selected"), [
    ("*", NAMES),
    ("layers.0.attn", NAMES[:1]),
    ("layers.?.attn", NAMES[:2]),
    ("head.attn[1]", NAMES[3:]),  # a name as it stands, brackets and all
    (r"re:layers\.[01]\..*", NAMES[:2]),
    ("re:layers", []),  # the whole name has to match
    ("LAYERS.*", []),
])  # fmt: skip
def test_patterns(pattern, selected):
    assert [name for name in NAMES if matches(pattern, name)] == selected


def test_a_pattern_that_selects_nothing():
    selection = Selection.of({"*": SoftmaxConfig(), "layer.0.attn": None})
    with pytest.raises(SelectionError, match=r"'layer.0.attn' selects no attention; did you mean 'layers.0.attn'\?"):
        selection.check(NAMES)
    with pytest.raises(SelectionError, match=r"'decoder' selects no attention; there are: 'layers.0.attn', "):
        Selection.of({"decoder": None}).check(NAMES)
    Selection.of({"*": None}).check(NAMES)


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(SelectionError, match=r"pattern 're:\(' is no regular expression"):
        matches("re:(", "a")
