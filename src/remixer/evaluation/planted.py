"""Whether a model remembers word for word: a secret planted far back, asked for at the end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.evaluation.batches import Batch, Windows, rows_of
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.outputs import Model, log_probabilities, logits_of

Distance = int | tuple[int, int]


@dataclass(frozen=True)
class Recall:
    """What a model makes of the secret's tokens, on average over windows.

    Attributes:
        first: log-probability of the first token, in nats.
        rest: log-probability of one of the others, each after those before it.
        top1: share of all of them that are the most probable token.
    """

    first: float
    rest: float
    top1: float


@dataclass(frozen=True)
class Needle:
    """A secret at one distance.

    Attributes:
        distance: by how many tokens the planted secret stands before where it is asked for: at least, and less than.
        windows: how many were tried, each with a secret of its own.
        planted: where the secret is what was planted.
        baseline: where another secret was planted: what there is to know without memory. None if it wasn't measured.
        gain: by how many nats a token the secret is more probable where it was planted. None without a baseline.
        error: standard error of the gain over windows. None for less than two.
    """

    distance: tuple[int, int]
    windows: int
    planted: Recall
    baseline: Recall | None
    gain: float | None
    error: float | None


def needle(
    model: Model,
    windows: Windows,
    distances: Sequence[Distance],
    *,
    cue: Sequence[int] | Tensor,
    vocabulary: tuple[int, int],
    secret: int = 8,
    baseline: bool = True,
    seed: int = 0,
) -> tuple[Needle, ...]:
    """Plant random tokens in texts, and ask for them at the end by the same cue.

    A window becomes: text, cue, secret, text, cue, secret; it keeps its length, and its last tokens go. A model that
    makes no more of the secret than where another one was planted remembers nothing, whatever other models make of it.

    Args:
        model: gives logits (B, T, V).
        windows: as those of `perplexity`, with no other inputs than token ids and padding.
        distances: by how many tokens the planted secret stands before where it is asked for; (low, high) is drawn for
            each window, high not included.
        cue: token ids that stand before the secret.
        vocabulary: (low, high): secrets are of tokens from low, and below high.
        secret: how many tokens, 2 or more.
        baseline: measure where another secret is planted, too.
        seed: of secrets and distances; they are the same for all models.

    Returns:
        One result for each distance.

    Raises:
        EvaluationError: a distance doesn't fit a window, or the vocabulary goes beyond the model's.

    Examples:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 50)
        >>> needle(uniform, torch.zeros(2, 64).long(), [32], cue=[1, 2], vocabulary=(10, 50))[0].gain
        0.0
    """
    samples = samples_of(
        windows, distances, cue=cue, vocabulary=vocabulary, secret=secret, baseline=baseline, seed=seed
    )
    return recalled(model, samples)


@dataclass(frozen=True)
class Samples:
    """Texts for one distance: with the secret that is asked for, and with another one."""

    distance: tuple[int, int]
    secret: int
    planted: list[Batch]
    others: list[Batch]


def samples_of(
    windows: Windows,
    distances: Sequence[Distance],
    *,
    cue: Sequence[int] | Tensor,
    vocabulary: tuple[int, int],
    secret: int,
    baseline: bool,
    seed: int,
) -> list[Samples]:
    """What `needle` asks a model; no model is needed for that."""
    rows = rows_of(windows)
    cue = torch.as_tensor(cue, dtype=torch.long)
    if cue.dim() != 1 or not len(cue):
        raise EvaluationError(f"the cue must be one or more token ids, got a tensor of shape {tuple(cue.shape)}")
    if secret < 2:
        raise EvaluationError(f"the secret must be 2 tokens or more, got {secret}")
    if not 0 <= vocabulary[0] < vocabulary[1]:
        raise EvaluationError(f"vocabulary must be (low, high), low < high, got {vocabulary}")
    ranges = [(each, each + 1) if isinstance(each, int) else each for each in distances]
    if not ranges:
        raise EvaluationError("there are no distances to plant the secret at")
    texts = [row.text() for row in rows]
    _check_fit(ranges, min(len(text) for text in texts), len(cue), secret)
    found = []
    for distance in ranges:
        generator = torch.Generator().manual_seed(seed)  # the same secrets at every distance
        planted, others = [], []
        for row, text in zip(rows, texts, strict=True):
            asked, other = (torch.randint(*vocabulary, (secret,), generator=generator) for _ in range(2))
            back = int(torch.randint(*distance, (1,), generator=generator))
            planted.append(row.with_text(_planted(text, cue, asked, asked, back)))
            if baseline:
                others.append(row.with_text(_planted(text, cue, other, asked, back)))
        found.append(Samples(distance, secret, planted, others))
    return found


def recalled(model: Model, samples: list[Samples]) -> tuple[Needle, ...]:
    """What a model makes of all samples."""
    found = []
    for one in samples:
        planted = [_asked(model, batch, one.secret) for batch in one.planted]
        found.append(_needle(one.distance, planted, [_asked(model, batch, one.secret) for batch in one.others]))
    return tuple(found)


def _check_fit(ranges: Sequence[tuple[int, int]], shortest: int, cue: int, secret: int) -> None:
    nearest, farthest = cue + secret, shortest - cue - secret
    for low, high in ranges:
        if low >= high:
            raise EvaluationError(f"distances must be whole numbers or (low, high), low < high, got {(low, high)}")
        if low < nearest or high - 1 > farthest:
            raise EvaluationError(
                f"a cue of {cue} and a secret of {secret} tokens fit a window of {shortest} tokens at distances from "
                f"{nearest} to {farthest}, not {words_of((low, high))}"
                + ("" if nearest <= farthest else f": windows must have {2 * nearest} tokens or more")
            )


def _planted(text: Tensor, cue: Tensor, planted: Tensor, asked: Tensor, back: int) -> Tensor:
    body = text[: len(text) - 2 * (len(cue) + len(asked))].cpu()
    at = len(body) + len(cue) + len(asked) - back
    return torch.cat([body[:at], cue, planted, body[at:], cue, asked]).to(text)


def _asked(model: Model, batch: Batch, secret: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the last tokens, and which of them are the most probable ones, (secret,)."""
    logits, ids = logits_of(model, batch), batch.ids[0].cpu()
    places = torch.arange(len(ids) - secret - 1, len(ids) - 1)
    found = log_probabilities(logits, torch.stack([torch.zeros_like(places), places], 1), model).cpu()
    wanted = ids[-secret:]
    return found.gather(1, wanted[:, None])[:, 0].double(), found.argmax(-1) == wanted


def _needle(
    distance: tuple[int, int], planted: list[tuple[Tensor, Tensor]], others: list[tuple[Tensor, Tensor]]
) -> Needle:
    if not others:
        return Needle(distance, len(planted), _recall(planted), None, None, None)
    gains = [float(mine[0].mean() - other[0].mean()) for mine, other in zip(planted, others, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
    return Needle(distance, len(planted), _recall(planted), _recall(others), statistics.fmean(gains), error)


def _recall(samples: list[tuple[Tensor, Tensor]]) -> Recall:
    chances = torch.stack([each for each, _ in samples])
    top1 = torch.stack([each for _, each in samples]).double().mean()
    return Recall(float(chances[:, 0].mean()), float(chances[:, 1:].mean()), float(top1))


def words_of(distance: tuple[int, int]) -> str:
    """How a distance is written."""
    low, high = distance
    return str(low) if high == low + 1 else f"{low} to {high - 1}"
