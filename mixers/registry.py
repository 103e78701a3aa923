"""Mixers by name.

Third parties add theirs through the entry-point group `remixer.mixers`; an entry point is loaded when its
name is first asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from remixer.mixers.base import Mixer, MixerConfig
from remixer.mixers.errors import UnknownMixerError

GROUP = "remixer.mixers"
M = TypeVar("M", bound=type[Mixer])
_MIXERS: dict[str, type[Mixer]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator that registers a mixer under a name.

    Raises:
        ValueError: another class has the name already.
    """

    def add(mixer: M) -> M:
        holder = _MIXERS.get(name)
        if holder is not None and holder is not mixer:
            raise ValueError(
                f"mixer {name!r} is already registered, by {holder.__module__}.{holder.__qualname__}; "
                f"{mixer.__module__}.{mixer.__qualname__} needs another name"
            )
        mixer.Config.name = name
        _MIXERS[name] = mixer
        return mixer

    return add


def available() -> tuple[str, ...]:
    """The names of all mixers, third parties' included, sorted."""
    return tuple(sorted({*_MIXERS, *(point.name for point in entry_points(group=GROUP))}))


def get(name: str) -> type[Mixer]:
    """The mixer class registered under a name.

    Raises:
        UnknownMixerError: there is none; the message lists those there are.
    """
    if name not in _MIXERS:
        for point in entry_points(group=GROUP, name=name):
            register(name)(point.load())
    if name not in _MIXERS:
        names = available()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise UnknownMixerError(f"no mixer named {name!r}; available: {', '.join(map(repr, names))}{hint}")
    return _MIXERS[name]


def mixer_of(config: MixerConfig) -> type[Mixer]:
    """The mixer class that takes a config.

    Raises:
        UnknownMixerError: no registered mixer takes configs of this class.
    """
    for mixer in _MIXERS.values():
        if type(config) is mixer.Config:
            return mixer
    raise UnknownMixerError(
        f"no mixer takes a {type(config).__name__}; register one with @remixer.mixers.register(name)"
    )
