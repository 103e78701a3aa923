"""Long-Short token mixing: one softmax over a window, the first tokens, and summaries of the rest."""

from remixer.mixers.long_short.mixer import LongShort, LongShortMixer

__all__ = ["LongShort", "LongShortMixer"]
