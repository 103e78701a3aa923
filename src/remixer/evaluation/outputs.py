"""What a model gives: logits, and their logarithms of probability a piece at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from remixer.evaluation.batches import Batch
from remixer.evaluation.errors import EvaluationError
from remixer.rewrite.agreement import mode
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.inputs import check_fits, without_cache

Model = Callable[..., Any]

_NUMBERS = 2**24  # of probabilities at a time: 64 MiB in float32


def name_of(model: Model) -> str:
    """What errors call a model."""
    return type(model).__name__


def call_of(model: Model, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as this model takes it: on its device, and without a cache where it has a say.

    Raises:
        EvaluationError: the model's signature doesn't take these inputs.
    """
    call = (batch.args, batch.kwargs)
    if not isinstance(model, nn.Module):
        return call
    try:
        check_fits(model, call)
    except CaptureError as error:
        raise EvaluationError(str(error)) from error
    device = next((weight.device for weight in model.parameters()), None)
    moved = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, call)
    return without_cache(model, moved)


def output_of(model: Model, batch: Batch) -> Any:
    """What a model gives in eval mode, without gradients."""
    args, kwargs = call_of(model, batch)
    with torch.no_grad(), mode(model, False) if isinstance(model, nn.Module) else contextlib.nullcontext():
        return model(*args, **kwargs)


def logits_of(model: Model, batch: Batch) -> Tensor:
    """A model's logits (B, T, V).

    They are the entry "logits" of a ModelOutput or dict, the tensor that the model gives, or the first of a tuple.

    Raises:
        EvaluationError: it gives none, or not one row of them per token, or the token ids go beyond them.
    """
    ids = batch.ids
    found = _entry(output_of(model, batch), "logits", model)
    if found.dim() != 3 or found.shape[:2] != ids.shape or not found.is_floating_point():
        raise EvaluationError(
            f"{name_of(model)} must give logits (B, T, V) for token ids {tuple(ids.shape)}, one row for each token; "
            f"got {found.dtype} {tuple(found.shape)}"
        )
    if int(ids.max()) >= found.shape[2]:
        raise EvaluationError(
            f"{name_of(model)} gives {found.shape[2]} numbers a token, but token ids go up to {int(ids.max())}: "
            "these are no logits over the vocabulary. Does the model have its language-model head?"
        )
    return found


def states_of(output: Any, model: Model) -> Tensor:
    """Hidden states (B, T, C), or embeddings (B, C) that are pooled already.

    They are the entry "last_hidden_state" of a ModelOutput or dict, the tensor that the model gives, or the first of
    a tuple.
    """
    found = _entry(output, "last_hidden_state", model)
    if found.dim() not in (2, 3) or not found.is_floating_point():
        raise EvaluationError(
            f"{name_of(model)} must give hidden states (B, T, C) or embeddings (B, C), "
            f"got {found.dtype} {tuple(found.shape)}"
        )
    return found


def _entry(output: Any, name: str, model: Model) -> Tensor:
    if isinstance(output, Mapping):
        found = output.get(name)
        given = f"a dict of {', '.join(map(str, output)) or 'nothing'}"
    elif hasattr(output, name):
        found, given = getattr(output, name), type(output).__name__
    else:
        found = output[0] if isinstance(output, (tuple, list)) and output else output
        given = type(output).__name__
    if not isinstance(found, Tensor):
        raise EvaluationError(
            f"{name_of(model)} gives no {name}: it gave {given}. It must give a dict or ModelOutput with {name!r}, "
            "a tensor, or a tuple that starts with one"
        )
    return found


def pieces(places: Tensor, vocabulary: int) -> Iterator[Tensor]:
    """Places (P, 2) of rows and tokens, as many at a time as bound the memory of their probabilities."""
    yield from places.split(max(1, _NUMBERS // vocabulary))


def log_probabilities(logits: Tensor, places: Tensor, model: Model) -> Tensor:
    """Log-softmax (P, V) of the logits at some places (P, 2), in float32 at least.

    Raises:
        EvaluationError: some are NaN.
    """
    places = places.to(logits.device)
    chosen = logits[places[:, 0], places[:, 1]]
    found = torch.log_softmax(chosen.to(torch.promote_types(chosen.dtype, torch.float32)), -1)
    wrong = found.isnan().any(-1)
    if wrong.any():
        row, token = places[wrong][0].tolist()
        raise EvaluationError(f"the logits of {name_of(model)} are not finite at token {token} of row {row}")
    return found
