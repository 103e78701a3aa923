"""A sequence of which all tokens exist: what is seen of it depends on its length alone, and is kept between calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import torch

from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.sight import Sight
from remixer.mixers.spec import AttentionSpec

V = TypeVar("V")


def kept(make: Callable[..., V]) -> Callable[..., V]:
    """What is made lasts between calls, for the latest 32 arguments, and serves inference and training."""

    @functools.lru_cache(maxsize=32)
    @functools.wraps(make)
    def made(*arguments: Hashable) -> V:
        with torch.inference_mode(False):  # or no later call could keep it for its gradients
            return make(*arguments)

    return made


class Whole(NamedTuple):
    """A sequence without padding, as the Long-Short mixer sees it."""

    spec: AttentionSpec
    config: LongShort
    tokens: int
    sinks: int
    rank: int
    align: int
    device: torch.device

    @classmethod
    def of(cls, sight: Sight) -> Whole:
        """What is seen of a sequence if all of it exists."""
        sinks = 0 if sight.sinks is None else sight.sinks[0].shape[1]
        exist = sight.exist
        return cls(sight.spec, sight.config, exist.shape[1], sinks, sight.rank, sight.align, exist.device)

    def sight(self) -> Sight:
        """It again."""
        return _sight(self)

    def without_sinks(self) -> Sight:
        """What is seen of it but for sinks."""
        return _sight(self._replace(sinks=0))


@kept
def _sight(whole: Whole) -> Sight:
    exist = torch.ones(1, whole.tokens, dtype=torch.bool, device=whole.device)
    return Sight.of(whole.spec, whole.config, exist, whole.sinks, whole.rank, whole.align)
