"""Long-Short token mixing: one softmax over a window, the first tokens, and summaries of the rest."""

from remixer.mixers.long_short.config import LongShort
from remixer.mixers.long_short.mixer import LongShortMixer

__all__ = ["LongShort", "LongShortMixer"]
