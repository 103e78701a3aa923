"""All measurements at once, for several models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import torch
from torch import Tensor

from remixer.evaluation import embedded, generated, losses, next_tokens, planted
from remixer.evaluation.batches import Batch, Windows
from remixer.evaluation.costs import check_cost, cost
from remixer.evaluation.errors import EvaluationError
from remixer.evaluation.outputs import Model, logits_of
from remixer.evaluation.result import Evaluation, Scores
from remixer.rewrite.inputs import Inputs


def evaluate(
    models: Mapping[str, Model],
    *,
    windows: Windows | None = None,
    buckets: losses.Buckets = 128,
    top: int = 5,
    prompts: Windows | None = None,
    tokens: int = 32,
    items: Windows | None = None,
    pool: embedded.Pool = "mean",
    neighbours: int = 10,
    distances: Sequence[planted.Distance] | None = None,
    cue: Sequence[int] | Tensor | None = None,
    vocabulary: tuple[int, int] | None = None,
    secret: int = 8,
    inputs_at: Callable[[int], Inputs | Batch] | None = None,
    lengths: Sequence[int] | None = None,
    runs: int = 3,
    tasks: Mapping[str, Callable[[Model], float]] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure what the arguments ask for, for all models, the first of which is the teacher of the others.

    Args:
        models: by name; all are given the same.
        windows: for `perplexity` (with `buckets`) and `agreement` (with `top`).
        buckets: see `perplexity`.
        top: see `agreement`.
        prompts: for `generation`, by so many `tokens`.
        tokens: see `generation`.
        items: for `embeddings` (with `pool` and `neighbours`).
        pool: see `embeddings`.
        neighbours: see `embeddings`.
        distances: for `needle` in the windows (with `cue`, `vocabulary` and `secret`).
        cue: see `needle`.
        vocabulary: see `needle`.
        secret: see `needle`.
        inputs_at: for `cost` at all `lengths` (with `runs`).
        lengths: see `cost`.
        runs: see `cost`.
        tasks: figures of your own, from a model to a number: without them nobody knows what a model is good for.
        seed: of the secrets.

    Returns:
        Print it, or look at its `models`; `to_json()` and `plot(path)` write it.

    Raises:
        EvaluationError: nothing is asked for, something that belongs to it is missing, or it can't be measured.

    Examples:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 50)
        >>> found = evaluate({"original": uniform, "small": uniform}, windows=torch.arange(20).view(2, 10))
        >>> found.models["small"].perplexity.ratio
        1.0
    """
    if not models:
        raise EvaluationError("there are no models to evaluate")
    _check_asked(windows, prompts, items, distances, cue, vocabulary, inputs_at, lengths, tasks)
    batches = [] if windows is None else losses.windows_of(windows, buckets)
    rows = [] if prompts is None else generated.prompts_of(prompts, tokens)
    things = [] if items is None else embedded.items_of(items, neighbours, pool)
    samples = []
    if distances is not None and windows is not None and cue is not None and vocabulary is not None:
        samples = planted.samples_of(
            windows, distances, cue=cue, vocabulary=vocabulary, secret=secret, baseline=True, seed=seed
        )
    if lengths is not None:
        check_cost(lengths, runs)

    teacher = next(iter(models))
    texts = _over_windows(models, batches, buckets, top)
    written = generated.continued(models[teacher], rows, tokens) if rows else None
    points = embedded.embedded(models[teacher], things, pool) if things else None
    found = {}
    for name, model in models.items():
        writes, close = None, None
        if written is not None and name != teacher:
            writes = generated.generation(model, None, rows, tokens, written)
        if points is not None and name != teacher:
            close = embedded.compare(embedded.embedded(model, things, pool), points, neighbours)
        found[name] = Scores(
            *texts[name],
            generation=writes,
            embeddings=close,
            needles=planted.recalled(model, samples),
            costs=cost(model, inputs_at, lengths, runs=runs) if inputs_at and lengths else (),
            tasks=tuple((task, float(measure(model))) for task, measure in (tasks or {}).items()),
        )
    return Evaluation(found, seed, torch.get_num_threads(), versions())


def _check_asked(
    windows: object,
    prompts: object,
    items: object,
    distances: object,
    cue: object,
    vocabulary: object,
    inputs_at: object,
    lengths: object,
    tasks: object,
) -> None:
    if all(each is None for each in (windows, prompts, items, inputs_at, lengths)) and not tasks and distances is None:
        raise EvaluationError("nothing is asked for: give windows, prompts, items, inputs_at and lengths, or tasks")
    if distances is not None and (windows is None or cue is None or vocabulary is None):
        raise EvaluationError("distances of a needle need windows to plant it in, a cue, and a vocabulary (low, high)")
    if (inputs_at is None) != (lengths is None):
        raise EvaluationError("inputs_at and lengths belong together: what to run at which lengths")


def _over_windows(
    models: Mapping[str, Model], batches: list[Batch], buckets: losses.Buckets, top: int
) -> dict[str, tuple[losses.Perplexity | None, next_tokens.Agreement | None]]:
    """Perplexity and agreement of all models, each of which runs once on each window."""
    if not batches:
        return dict.fromkeys(models, (None, None))
    teacher = next(iter(models))
    nats: dict[str, list[losses.Losses]] = {name: [] for name in models}
    same: dict[str, list[Tensor]] = {name: [] for name in models}
    for batch in batches:
        expected = logits_of(models[teacher], batch)
        for name, model in models.items():
            logits = expected if name == teacher else logits_of(model, batch)
            nats[name] += losses.losses_of(model, batch, logits)
            if name != teacher:
                same[name].append(next_tokens.compared(model, models[teacher], batch, top, logits, expected))
    alone = losses.summarise(nats[teacher], buckets, None)
    return {
        name: (
            losses.summarise(nats[name], buckets, alone),
            None if name == teacher else next_tokens.summarise(same[name], top),
        )
        for name in models
    }


def versions() -> dict[str, str]:
    """What measured."""
    return {"remixer": metadata.version("remixer"), "torch": str(torch.__version__)}
