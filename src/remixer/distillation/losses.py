"""How far a rewritten model's outputs are from its original's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from remixer.distillation.errors import TransferError
from remixer.rewrite.elsewhere import is_mask

Loss = Callable[[Any, Any, Tensor | None], Tensor]
# Logits whose softmax is made in one piece: on a GPU, and where what lies between should stay in cache.
AT_ONCE, IN_CACHE = 2**24, 2**19
# The logarithm of probabilities that all count as this one. CPUs take many times as long for numbers below 1e-38,
# which most of a vocabulary's would be, and their gradients.
NEGLIGIBLE = -40.0
FASTER = 8.0  # see `pace`
ROUNDED = 1e-6  # see `negligible`


def loss_of(kind: str | Loss) -> Loss:
    """The loss of this name, or the function itself.

    Raises:
        TransferError: there is none of this name.
    """
    if callable(kind):
        return kind
    if kind not in LOSSES:
        raise TransferError(f"loss must be one of {', '.join(LOSSES)} or a function, got {kind!r}")
    return LOSSES[kind]


def fitting(outputs: Any, wanted: Any, exist: Tensor | None) -> Tensor:
    """`divergence` for what is called logits, else `cosine` for what are called states.

    Raises:
        TransferError: the outputs have no names.
    """
    return LOSSES[fitting_name(outputs)](outputs, wanted, exist)


def fitting_name(outputs: Any) -> str:
    """Which loss "auto" is for these outputs.

    Raises:
        TransferError: the outputs have no names.
    """
    paths, _ = pytree.tree_flatten_with_path(outputs)
    names = ["".join(map(str, path)) for path, leaf in paths if isinstance(leaf, Tensor)]
    if any("logits" in name for name in names):
        return "logits"
    if any(name for name in names):
        return "states"
    raise TransferError("the model's output has no name that tells what it is: give loss='logits', 'states' or 'mean'")


def divergence(outputs: Any, wanted: Any, exist: Tensor | None) -> Tensor:
    """KL(original || rewritten) of the next token, in nats, the mean over the tokens that exist."""
    given, right = _named(outputs, "logits"), _named(wanted, "logits")
    found: Tensor = _Divergence.apply(given.flatten(0, -2), right.flatten(0, -2), _shares(given, exist))
    return found


def cosine(outputs: Any, wanted: Any, exist: Tensor | None) -> Tensor:
    """1 - cosine of the states of each token, the mean over the tokens that exist and over outputs."""
    found = []
    for given, right in zip(_floats(outputs), _floats(wanted), strict=True):
        likeness = torch.cosine_similarity(given.flatten(0, -2).float(), right.flatten(0, -2).float(), dim=-1)
        found.append(((1.0 - likeness) * _shares(given, exist)).sum())
    return torch.stack(found).mean()


def mean_cosine(outputs: Any, wanted: Any, exist: Tensor | None) -> Tensor:
    """1 - cosine of each sequence's embedding, the mean state (B, T, C) of the tokens that exist, plus `cosine`."""
    given, right = (_floats(each)[0] for each in (outputs, wanted))
    if given.dim() != 3:
        raise TransferError(f"loss='mean' needs states (B, T, C), the first output is {tuple(given.shape)}")
    weights = given.new_ones(given.shape[:2]) if exist is None else exist.to(given.dtype)
    pooled, wished = (torch.einsum("btc,bt->bc", each, weights).float() for each in (given, right))
    return (1.0 - torch.cosine_similarity(pooled, wished, dim=-1)).mean() + cosine([given], [right], exist)


def pace(loss: Loss, outputs: Any) -> float:
    """How many times as fast as by logits one learns by this loss: whole states say more than the next token does.

    On MiniLM, six Toeplitz sites: after 120 steps 12 times was better than 6, that than 3, and that than 1.
    """
    found = LOSSES[fitting_name(outputs)] if loss is fitting else loss
    return FASTER if found in (cosine, mean_cosine) else 1.0


def negligible(loss: Loss) -> float:
    """What rounding alone may give: of the losses that are known here, not of a function that was given."""
    return ROUNDED if loss in LOSSES.values() else 0.0


LOSSES: dict[str, Loss] = {"auto": fitting, "logits": divergence, "states": cosine, "mean": mean_cosine}
MEANINGS = {
    "logits": "KL of the next token in nats",
    "states": "1 - cosine of the states",
    "mean": "1 - cosine of the mean state, and of all",
}


def existing(call: Any) -> Tensor | None:
    """(B, T) bool, which tokens of a call exist, if it has one mask."""
    masks = [leaf for leaf in pytree.tree_leaves(call) if is_mask(leaf) and leaf.dim() == 2]
    return masks[0].bool() if len(masks) == 1 else None


def _floats(outputs: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor) and each.is_floating_point()]


def _named(outputs: Any, name: str) -> Tensor:
    """The output of this name, or the first."""
    paths, _ = pytree.tree_flatten_with_path(outputs)
    floats = [(path, leaf) for path, leaf in paths if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return next((leaf for path, leaf in floats if name in "".join(map(str, path))), floats[0][1])


def _shares(given: Tensor, exist: Tensor | None) -> Tensor:
    """How much each of the rows (B T) counts; they sum to 1."""
    rows = given.shape[:-1]
    counted = exist is not None and exist.shape == rows
    shares = exist.flatten().float() if counted and exist is not None else torch.ones(rows.numel(), device=given.device)
    return shares / shares.sum()


class _Divergence(torch.autograd.Function):
    """Sum of shares KL(right || given): its gradient is known, and no softmax of all logits is kept."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, right: Tensor, shares: Tensor) -> Tensor:
        rows = max(1, (IN_CACHE if given.device.type == "cpu" else AT_ONCE) // given.shape[-1])
        total = given.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(given)
        for start in range(0, len(given), rows):
            part = slice(start, start + rows)
            log_given, log_right = (torch.log_softmax(each[part].float(), -1) for each in (given, right))
            likely, weights = (each.clamp(min=NEGLIGIBLE).exp_() for each in (log_given, log_right))
            total += ((weights * log_right.sub_(log_given)).sum(-1) * shares[part]).sum()
            gradient[part] = likely.sub_(weights).mul_(shares[part, None])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * above, None, None
