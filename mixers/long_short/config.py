"""The options of Long-Short token mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remixer.mixers.base import MixerConfig
from remixer.mixers.long_short.memory import Limit


@dataclass(frozen=True)
class LongShort(MixerConfig):
    """One softmax over a window of tokens, the first tokens, and summaries of the rest.

    Attributes:
        window: how many tokens one sees. Causal: the last ones, itself included, and as many more as the segment
            has that these begin in, so that none is left between window and summaries. Bidirectional: the segment
            of this length that it is in, and half as many to either side.
        rank: how many summaries; of the whole sequence, or of every segment if causal. None is 32, or 1 if
            causal; 0 is none.
        segment: how many tokens one causal summary stands for.
        sinks: the first so many tokens that exist are seen by all.
        memory: how many segments before the window a causal token sees, or None for all of them, which makes
            the mixer quadratic again, with a small factor. "dyadic" reaches back to the first token all the same:
            summaries are merged in pairs as they age, so that there are about log n of them.
        per_size: of a dyadic memory, how many summaries of each size stay before two of them are merged.
        retrieve: how many far segments are attended to word for word: those whose keys may score highest. They are
            the same for all query heads of a key/value head.
        retrieve_block: how many queries in a row share a choice: that of the first of them if causal. More are faster
            and find less.
        dual_norm: LayerNorms on keys and values, one for tokens and one for summaries: over all heads
            together as in the "paper", "per_head", or "none", which suits a pretrained attention.
        project_from: what the summaries' weights are read from: the "key" of the head, or the hidden state
            ("source") as in the paper.
        maps: learn a linear map of the summaries' keys and one of their values, for each key/value head; both start as
            the identity. For pretrained attentions, whose keys were not made to be averaged; not in the paper.
        counted: a summary weighs as many tokens as it stands for, those left out that the query sees anyway, but
            those of a whole sequence one token each at most; times a learned factor per head. False is the
            published form.
    """

    window: int = 128
    rank: int | None = None
    segment: int = 8
    sinks: int = 4
    memory: Limit = 128
    per_size: int = 16
    retrieve: int = 0
    retrieve_block: int = 1
    dual_norm: Literal["none", "paper", "per_head"] = "none"
    project_from: Literal["key", "source"] = "key"
    maps: bool = False
    counted: bool = True

    def __post_init__(self) -> None:
        for name in ("window", "segment"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(self.sinks >= 0, f"sinks can't be negative, got {self.sinks}")
        self.require(self.rank is None or self.rank >= 0, f"rank can't be negative, got {self.rank}")
        limited = self.memory in (None, "dyadic") or (isinstance(self.memory, int) and self.memory >= 1)
        self.require(limited, f"memory must be at least 1, 'dyadic' or None, got {self.memory!r}")
        self.require(self.per_size >= 1, f"per_size must be at least 1, got {self.per_size}")
        self.require(self.retrieve >= 0, f"retrieve can't be negative, got {self.retrieve}")
        fits = self.retrieve_block >= 1 and (not self.retrieve or self.window % self.retrieve_block == 0)
        self.require(fits, f"retrieve_block must divide window, got {self.retrieve_block} and {self.window}")
        norms, operands = ("none", "paper", "per_head"), ("key", "source")
        self.require(self.dual_norm in norms, f"dual_norm must be one of {', '.join(norms)}, got {self.dual_norm!r}")
        self.require(
            self.project_from in operands,
            f"project_from must be one of {', '.join(operands)}, got {self.project_from!r}",
        )
