"""`generate` and `generate_stream`: a rewritten model continues token ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, fx

from remixer.generation.choosing import Choice, Choose
from remixer.generation.decoding import Decoder
from remixer.generation.errors import GenerationError
from remixer.generation.keeping import kept_decoder
from remixer.generation.stopping import Stop


class Sampling(TypedDict, total=False):
    """How tokens are chosen; the most probable one if nothing is said.

    Attributes:
        temperature: logits are divided by it.
        top_k: draw from so many of the most probable tokens; 0 for all.
        top_p: draw from the most probable tokens that have so much of the probability together.
        min_p: draw from tokens that are at least so probable, relative to the most probable one.
        repetition_penalty: logits of tokens that the text has already are divided by it, or multiplied where negative.
        do_sample: draw; by default if one of the first four is given.
        seed: of what is drawn; torch's global random numbers by default.
        choose: from the logits (B, vocabulary) of the last token to the next ids (B,), instead of all these.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    do_sample: bool | None
    seed: int | None
    choose: Choose | None


def generate(
    model: fx.GraphModule | Decoder,
    tokens: Tensor,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    *,
    stop: int | Collection[int] = (),
    stop_strings: str | Collection[str] = (),
    tokenizer: Any = None,
    pad: int | None = None,
    source: Mapping[str, Tensor] | None = None,
    stream: Callable[[Tensor], object] | None = None,
    **sampling: Unpack[Sampling],
) -> Tensor:
    """Token ids with a rewritten model's continuation, from a state that goes on token by token.

    Args:
        model: what `remixer.remix` gave, see `Decoder`, or a decoder, which is built once for many texts. The one that
            is built for a model is kept with it, for texts that are no longer.
        tokens: (B, T) token ids of prompts; shorter ones are padded on the left.
        max_new_tokens: how many to add at most.
        attention_mask: (B, T), 1 or True where a token of a prompt exists, or None where all do.
        stop: ids that end a row; they are part of it.
        stop_strings: what ends a row once it is in the text written.
        tokenizer: that has `decode`, for stop strings.
        pad: stands behind a row that has ended before others; by default its last token does.
        source: what the model reads of another sequence, see `Decoder.prefill`.
        stream: called with the ids (B,) of every new token.
        sampling: see `Sampling`: temperature, top_k, top_p, min_p, repetition_penalty, do_sample, seed, choose. All but
            the last three are logits processors of transformers, which has to be installed for them.

    Returns:
        (B, T + new) int64; it ends where the last row does.

    Raises:
        GenerationError: the model can't go token by token; a prompt is padded on the right; options contradict one
            another, or need what isn't there.
    """
    found = [tokens]
    for token in generate_stream(
        model,
        tokens,
        max_new_tokens,
        attention_mask,
        stop=stop,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
        pad=pad,
        source=source,
        **sampling,
    ):
        found.append(token[:, None])
        if stream is not None:
            stream(token)
    return torch.cat(found, 1)


def generate_stream(
    model: fx.GraphModule | Decoder,
    tokens: Tensor,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    *,
    stop: int | Collection[int] = (),
    stop_strings: str | Collection[str] = (),
    tokenizer: Any = None,
    pad: int | None = None,
    source: Mapping[str, Tensor] | None = None,
    **sampling: Unpack[Sampling],
) -> Iterator[Tensor]:
    """`generate`, giving the ids (B,) of one new token after the other. What is wrong is raised at the call."""
    choice, ends = Choice(**sampling), Stop.of(stop, stop_strings, tokenizer)
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if tokens.dim() != 2:
        raise GenerationError(f"expected token ids (B, T), got {tuple(tokens.shape)}: one prompt is tokens[None]")
    mask = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if mask.shape != tokens.shape:
        raise GenerationError(f"attention_mask is {tuple(mask.shape)} and not {tuple(tokens.shape)} as the tokens are")
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()) or not bool(mask[:, -1:].all()):
        raise GenerationError("pad prompts on the left: all tokens behind the first one that exists have to exist")
    chooser, total = choice.chooser(mask), tokens.shape[1] + max_new_tokens
    if isinstance(model, Decoder):
        if total > model.length:
            raise GenerationError(
                f"{tokens.shape[1]} tokens and {max_new_tokens} new ones are more than the {model.length} that the "
                "decoder was built for: build one with a greater length"
            )
        decoder = model
    else:
        decoder = kept_decoder(model, total)
    return _written(decoder, tokens, mask, max_new_tokens, chooser, ends, pad, source)


def _written(
    decoder: Decoder,
    tokens: Tensor,
    mask: Tensor,
    most: int,
    chooser: Callable[[Tensor, Tensor], Tensor],
    ends: Stop,
    pad: int | None,
    source: Mapping[str, Tensor] | None,
) -> Iterator[Tensor]:
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    logits, state = decoder.prefill(tokens, mask, source)
    text = tokens
    for new in range(1, most + 1):
        chosen = chooser(text, logits[:, -1]).to(tokens.dtype)
        chosen = torch.where(ended, text[:, -1] if pad is None else pad, chosen)
        text = torch.cat([text, chosen[:, None]], 1)
        yield chosen
        ended = ends.ended(text[:, tokens.shape[1] :], ended)
        if bool(ended.all()):
            return
        if new < most:
            logits, state = decoder.step(chosen[:, None], state)
