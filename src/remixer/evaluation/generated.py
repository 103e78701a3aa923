"""Whether a model writes what its teacher writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.evaluation.batches import Batch, Windows, rows_of
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.outputs import Model, log_probabilities, logits_of


@dataclass(frozen=True)
class Generation:
    """Greedy tokens of a model, each asked for after the prompt and the teacher's tokens before it.

    Attributes:
        prompts: how many prompts.
        tokens: by how many tokens each was continued.
        steps: share of prompts where the token is the teacher's, one for each step.
        agreement: their mean.
        prefix: how many tokens are the teacher's before the first that is not, on average. This is also how far the
            model, left to itself, would write what the teacher writes.
    """

    prompts: int
    tokens: int
    steps: tuple[float, ...]
    agreement: float
    prefix: float


def generation(
    model: Model,
    teacher: Model | None,
    prompts: Windows,
    tokens: int = 32,
    continuations: Tensor | Sequence[Tensor] | None = None,
) -> Generation:
    """How far a model continues prompts as its teacher does, under teacher forcing.

    Args:
        model: gives logits (B, T, V).
        teacher: continues the prompts; may be None where `continuations` are given.
        prompts: as the windows of `perplexity`, with no other inputs than token ids and padding.
        tokens: by how many tokens to continue.
        continuations: the teacher's tokens, (N, tokens), if they are known: `continued` finds them.

    Raises:
        EvaluationError: there are no prompts, or empty ones; there are inputs of other kinds; there is neither teacher
            nor continuations.
    """
    rows = prompts_of(prompts, tokens)
    if continuations is None:
        if teacher is None:
            raise EvaluationError("give a teacher, or its continuations")
        continuations = continued(teacher, prompts, tokens)
    sizes = {len(continuation) for continuation in continuations}
    if len(continuations) != len(rows) or len(sizes) != 1 or 0 in sizes:
        raise EvaluationError(
            f"{len(rows)} prompts need as many continuations, all of the same length; got {len(continuations)} of "
            f"{sorted(sizes)} tokens"
        )
    same = torch.stack([_same(model, row, continuation) for row, continuation in zip(rows, continuations, strict=True)])
    prefix = same.long().cumprod(1).sum(1)
    steps = same.double().mean(0)
    return Generation(
        len(rows), same.shape[1], tuple(steps.tolist()), float(steps.mean()), float(prefix.double().mean())
    )


def prompts_of(prompts: Windows, tokens: int) -> list[Batch]:
    """Every prompt by itself; all of them can be continued."""
    if tokens < 1:
        raise EvaluationError(f"prompts are continued by 1 token or more, not by {tokens}")
    rows = rows_of(prompts)
    for row in rows:
        text = row.text()
        if not len(text):
            raise EvaluationError("a prompt has no token that exists")
        row.with_text(text)
    return rows


def continued(model: Model, prompts: Windows, tokens: int = 32) -> Tensor:
    """The most probable next token, again and again, each by a pass over all tokens so far.

    It goes on past tokens that end a text.

    Returns:
        Token ids (N, tokens).
    """
    found = []
    for row in prompts_of(prompts, tokens):
        text = row.text()
        start = len(text)
        for _ in range(tokens):
            text = torch.cat([text, _greedy(model, row.with_text(text), len(text) - 1)])
        found.append(text[start:])
    return torch.stack(found)


def _same(model: Model, row: Batch, continuation: Tensor) -> Tensor:
    prompt = row.text()
    whole = torch.cat([prompt, continuation.to(prompt)])
    return _greedy(model, row.with_text(whole[:-1]), len(prompt) - 1) == whole[len(prompt) :]


def _greedy(model: Model, batch: Batch, start: int) -> Tensor:
    """The most probable tokens after each of a text's tokens from `start` on."""
    logits = logits_of(model, batch)
    places = torch.arange(start, logits.shape[1])
    found = log_probabilities(logits, torch.stack([torch.zeros_like(places), places], 1), model)
    return found.argmax(-1).to(batch.ids)
