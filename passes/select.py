"""Which site gets which config: patterns of names, the first that matches wins."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from remixer.mixers import MixerConfig
from remixer.passes.errors import SelectionError


@dataclass(frozen=True)
class Selection:
    """Patterns of site names with the config each asks for, None to keep the attention.

    A pattern is a name, a shell pattern ("encoder.layer.*") or, behind "re:", a regular expression that the
    whole name must match. Sites that no pattern matches are kept.
    """

    entries: tuple[tuple[str, MixerConfig | None], ...]

    @staticmethod
    def of(entries: Mapping[str, MixerConfig | None]) -> Selection:
        """The selection that a mapping asks for, in its order."""
        return Selection(tuple(entries.items()))

    def config_for(self, name: str) -> MixerConfig | None:
        """What a site of this name is to become."""
        for pattern, config in self.entries:
            if matches(pattern, name):
                return config
        return None

    def check(self, names: Iterable[str]) -> None:
        """Raise SelectionError for a pattern that selects none of the names."""
        names = list(names)
        for pattern, _ in self.entries:
            if not any(matches(pattern, name) for name in names):
                close = difflib.get_close_matches(pattern, names, n=1)
                hint = f"did you mean {close[0]!r}? There" if close else "there"
                known = ", ".join(map(repr, names))
                raise SelectionError(f"pattern {pattern!r} selects no attention; {hint} are: {known}")


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern selects a name.

    Raises:
        SelectionError: the pattern is no regular expression.

    Examples:
        >>> matches("layers.*", "layers.3.self_attn"), matches("re:layers[.][0-2][.].*", "layers.3.self_attn")
        (True, False)
    """
    if not pattern.startswith("re:"):
        return pattern == name or fnmatch.fnmatchcase(name, pattern)
    try:
        return re.fullmatch(pattern.removeprefix("re:"), name) is not None
    except re.error as error:
        raise SelectionError(f"pattern {pattern!r} is no regular expression: {error}") from error
