"""Which token comes next: the most probable one, a drawn one, or what a function says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remixer.generation.errors import GenerationError

Choose = Callable[[Tensor], Tensor]  # from logits (B, vocabulary) to token ids (B,)


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen; see `generate` for what each of these does.

    Raises:
        GenerationError: options contradict one another, or transformers isn't installed, whose processors these are.
        ValueError: transformers refuses a value.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None
    seed: int | None = None
    choose: Choose | None = None

    def __post_init__(self) -> None:
        named = self._given("temperature", "top_k", "top_p", "min_p")
        if self.choose is not None and (named or self._given("repetition_penalty", "do_sample", "seed")):
            raise GenerationError("choose= decides alone: give it, or the options of sampling, not both")
        if named and self.do_sample is False:
            raise GenerationError(
                f"{named[0]} changes nothing with do_sample=False, which takes the most probable token"
            )
        if self.seed is not None and not self.sampled:
            raise GenerationError("a seed changes nothing where no token is drawn: give do_sample=True too")

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        if self.do_sample is not None:
            return self.do_sample
        return bool(self._given("temperature", "top_k", "top_p", "min_p"))

    def chooser(self, mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """From all tokens so far (B, T) and the last one's logits (B, vocabulary) to the next ids (B,).

        Args:
            mask: (B, T) bool, which tokens of the prompts exist.
        """
        if (choose := self.choose) is not None:
            return lambda _, logits: choose(logits)
        processors = self._processors((~mask).sum(1))
        generator = None
        if self.sampled and self.seed is not None:
            generator = torch.Generator(mask.device).manual_seed(self.seed)

        def chosen(tokens: Tensor, logits: Tensor) -> Tensor:
            scores = processors(tokens, logits.float()) if processors else logits.float()
            if not self.sampled:
                return scores.argmax(-1)
            return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]

        return chosen

    def _processors(self, padded: Tensor) -> Any:
        """Those of transformers, in its order; None if there are none. `padded`: (B,), tokens before the prompts."""
        named = self._given("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
        if not named:
            return None
        try:
            from transformers.generation import logits_process as processing
        except ImportError as error:
            raise GenerationError(
                f"{', '.join(named)}: these are logits processors of transformers, which is not installed. Install it, "
                "or give choose="
            ) from error
        made: list[Any] = []
        if self.repetition_penalty is not None:
            penalty = processing.RepetitionPenaltyLogitsProcessor(self.repetition_penalty)
            made.append(_without_padding(penalty, padded))
        if self.temperature is not None:
            made.append(processing.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:  # 0 means all
            made.append(processing.TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            made.append(processing.TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            made.append(processing.MinPLogitsWarper(self.min_p))
        return processing.LogitsProcessorList(made)

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]


def _without_padding(processor: Any, padded: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The processor on rows without the padding in front of them."""

    def process(tokens: Tensor, scores: Tensor) -> Tensor:
        if not bool(padded.any()):
            return processor(tokens, scores)
        rows = [
            processor(row[None, start:], score[None])
            for row, score, start in zip(tokens, scores, padded.tolist(), strict=True)
        ]
        return torch.cat(rows)

    return process
