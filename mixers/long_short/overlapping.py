"""Runs of tokens cut out of a sequence so that they overlap, whose gradients are added up in its own order.

Autograd's own gradient of such a view takes as long as the attention that reads it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from remixer.mixers.eager import plain_training


def overlapping(tokens: Tensor, start: int, span: int, step: int, count: int) -> Tensor:
    """(B, G, T, D) to (B, G, count, span, D): run i holds the tokens from start + i * step on, a view of one copy.

    Before the first token and behind the last one there are zeros. For tensors that nobody traces.
    """
    if plain_training(tokens):
        runs: Tensor = _Overlapping.apply(tokens, start, span, step, count)
        return runs
    return _cut(tokens, start, span, step, count)


def _cut(tokens: Tensor, start: int, span: int, step: int, count: int) -> Tensor:
    end = start + (count - 1) * step + span
    run = F.pad(tokens[:, :, : max(end, 0)], (0, 0, -start, 0))
    missing = end - start - run.shape[2]
    if missing:
        run = F.pad(run, (0, 0, 0, missing))
    return run.unfold(2, span, step).transpose(3, 4)


class _Overlapping(torch.autograd.Function):
    """See `overlapping`."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, start: int, span: int, step: int, count: int) -> Tensor:
        ctx.tokens, ctx.start, ctx.step = tokens.shape[2], start, step
        return _cut(tokens, start, span, step, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The sums over all runs that a token is in."""
        (gradient,) = gradients
        start, step = ctx.start, ctx.step
        B, G, count, span, D = gradient.shape
        pieces = -(-span // step)
        whole = gradient.new_zeros(B, (count + pieces - 1) * step, G, D).transpose(1, 2)
        for piece in range(pieces):
            part = gradient[:, :, :, piece * step : (piece + 1) * step]
            run = whole[:, :, piece * step : (piece + count) * step].unflatten(2, (count, step))
            run[:, :, :, : part.shape[3]] += part
        end = max(0, min(start + (count - 1) * step + span, ctx.tokens))
        first = min(max(start, 0), end)
        inside = whole[:, :, first - start : end - start]
        return F.pad(inside, (0, 0, first, ctx.tokens - end)), None, None, None, None
