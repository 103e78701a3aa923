"""Where a text ends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remixer.generation.errors import GenerationError


@dataclass(frozen=True)
class Stop:
    """Ids and strings that end a row.

    Attributes:
        ids: of tokens.
        strings: anywhere in what was written.
        tokenizer: has `decode`, from a list of ids to text; needed for strings.

    Raises:
        GenerationError: there are strings and no tokenizer, or an empty string.
    """

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.strings and self.tokenizer is None:
            raise GenerationError("stop_strings are looked for in text: give a tokenizer too")
        if "" in self.strings:
            raise GenerationError("a stop string can't be empty: every text would end at once")

    @classmethod
    def of(cls, stop: int | Collection[int], strings: str | Collection[str], tokenizer: Any) -> Stop:
        """One or several of each."""
        ids = (stop,) if isinstance(stop, int) else tuple(stop)
        return cls(ids, (strings,) if isinstance(strings, str) else tuple(strings), tokenizer)

    def ended(self, written: Tensor, before: Tensor) -> Tensor:
        """(B,) bool, which rows have ended.

        Args:
            written: (B, new), the tokens after the prompts.
            before: (B,) bool, which rows had ended before the last token.
        """
        last = written[:, -1]
        ended = before | torch.isin(last, torch.tensor(self.ids, dtype=last.dtype, device=last.device))
        if self.strings:
            for row in (~ended).nonzero()[:, 0].tolist():
                text = self.tokenizer.decode(written[row].tolist())
                ended[row] = any(string in text for string in self.strings)
        return ended
