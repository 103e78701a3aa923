"""`remixer generate`: a rewritten decoder writes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from remixer.commands.answering import Answer, AsJson
from remixer.commands.models import ModelError, find
from remixer.commands.options import Device, Mixers, Model, Tokenizer
from remixer.commands.progress import doing
from remixer.commands.rewriting import saved_or_rewritten
from remixer.commands.texts import tokenizer_for

if TYPE_CHECKING:
    import torch


def generate(
    model: Model,
    prompt: Annotated[list[str], typer.Option(help="A text to go on from; several are written side by side.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many to write at most.")] = 60,
    temperature: Annotated[float | None, typer.Option(help="Logits are divided by it.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from those that have so much probability together.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw from those so probable, relative to the first.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Against tokens that the text has already.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends what is written.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn.")] = None,
    mixer: Mixers = None,
    tokenizer: Tokenizer = None,
    device: Device = None,
    as_json: AsJson = False,
) -> Answer:
    """Continue a text with a rewritten decoder, token by token; the most probable ones if nothing else is said.

    Example: remixer generate small --prompt "def main():" --tokens 40
    """
    import remixer
    from remixer.rewrite.modules import device_of

    found = find(model).on(device)
    own = tokenizer_for(found, tokenizer)
    if own is None:
        raise ModelError(f"{model} came without a tokenizer: say --tokenizer, a folder")
    small = saved_or_rewritten(found, mixer, "softmax")
    ids, mask = _ids(own, prompt, device_of(small))
    writing = _Writing(own, ids, alone=len(prompt) == 1 and not as_json)
    with doing("preparing to go token by token"):
        decoder = remixer.Decoder(small, ids.shape[1] + tokens)
    start = time.perf_counter()
    given: dict[str, Any] = {"stop": [own.eos_token_id] if own.eos_token_id is not None else []}
    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    for token in remixer.generate_stream(
        decoder,
        ids,
        tokens,
        mask,
        stop_strings=stop or (),
        tokenizer=own,
        **given,
        **{name: value for name, value in sampling.items() if value is not None},
    ):
        writing.add(token)
    seconds = time.perf_counter() - start
    rows = writing.rows()
    texts = [own.decode(row, skip_special_tokens=True) for row in rows]
    told = {
        "texts": [
            {"prompt": given, "text": text, "tokens": row} for given, text, row in zip(prompt, texts, rows, strict=True)
        ],
        "seconds": seconds,
        "tokens_per_second": writing.steps / seconds,
    }
    writing.end()
    whole = [given + text for given, text in zip(prompt, texts, strict=True)]
    return Answer(None if writing.alone else Text("\n\n".join(whole)), told)


def _ids(tokenizer: Any, prompts: list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) of prompts, shorter ones padded on the left, and which of them exist."""
    import torch

    rows = [tokenizer(each)["input_ids"] for each in prompts]
    if empty := [each for each, row in zip(prompts, rows, strict=True) if not row]:
        raise ModelError(f"the prompt {empty[0]!r} has no token to go on from")
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


class _Writing:
    """What is written, shown as it comes if there is one text only.

    Args:
        tokenizer: that reads the ids.
        ids: (B, T) of the prompts.
        alone: whether to show it.
    """

    def __init__(self, tokenizer: Any, ids: torch.Tensor, *, alone: bool) -> None:
        self.tokenizer, self.alone, self.steps = tokenizer, alone, 0
        self._prompt, self._shown = ids, ""
        self._new: list[torch.Tensor] = []
        self._show(self._text())

    def add(self, token: torch.Tensor) -> None:
        """One more id (B,) of each text."""
        self._new.append(token)
        self.steps += 1
        text = self._text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character: the rest comes with the next token
            self._show(text)

    def rows(self) -> list[list[int]]:
        """The new ids of each text, up to the one that ended it."""
        import torch

        rows: list[list[int]] = torch.stack(self._new, 1).tolist()
        end = self.tokenizer.eos_token_id
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def end(self) -> None:
        """The line ends."""
        if self.alone:
            self._show(self._text())
            print(flush=True)

    def _text(self) -> str:
        ids = [*self._prompt[0].tolist(), *(int(token[0]) for token in self._new)]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _show(self, text: str) -> None:
        if self.alone and text.startswith(self._shown):
            print(text[len(self._shown) :], end="", flush=True)
            self._shown = text
