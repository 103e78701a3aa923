"""The Long-Short attention in training on a CPU by compiled code: its result as in inference, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from remixer.mixers.eager import plain_training, unwatched
from remixer.mixers.long_short.compiled_attention import ATTENTION, GRADIENTS, attend, attend_backward
from remixer.mixers.long_short.in_c import Asked, fits, groups_of
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.workspace import empty_like_tokens

# Into how many parts a sequence is cut at most, and how many tokens each has at least: each has gradients of keys and
# values of its own.
MOST_PARTS, LEAST_PART = 8, 256


def trainable_in_c(
    query: Tensor, keys: Tokens, values: Tokens, spec: AttentionSpec, offsets: Tensor | None, dropout: float
) -> bool:
    """Whether these operands are differentiated on a CPU, in a form that the code takes, and there is the code."""
    tensors = fits(query, keys, values, spec, offsets, dropout)
    if tensors is None or query.dtype == torch.bfloat16 or not (plain_training(*tensors) and unwatched()):
        return False
    return ATTENTION.proven(query.dtype) and GRADIENTS.proven(query.dtype)


def mix_in_c_training(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, *, masked: bool
) -> Tensor:
    """The numbers of `mix_at_once`, which explains the arguments, and its gradients.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    mixed: Tensor = _Attention.apply(sight, masked, added, query, *keys, *values)
    return mixed


class _Attention(torch.autograd.Function):
    """See `mix_in_c_training`."""

    @staticmethod
    def forward(
        ctx: Any, sight: Sight, masked: bool, added: Tensor | None, query: Tensor, *tokens: Tensor | None
    ) -> Tensor:
        keys, values = Tokens(*tokens[:3]), Tokens(*tokens[3:])  # type: ignore[arg-type]
        groups = list(groups_of(query, keys, values, sight, added, masked))
        out = empty_like_tokens(query, query.shape[1], values.near.shape[3])
        logarithms = query.new_empty(query.shape[:3])
        attend(query, groups, sight.spec.scale, out, logarithms)
        ctx.save_for_backward(out, logarithms, added, query, *tokens)
        ctx.sight, ctx.masked = sight, masked
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of added, query, and of near, sinks and far of keys and values."""
        (above,) = gradients
        out, logarithms, added, query, *tokens = ctx.saved_tensors
        _, _, adds, asks, *wanted = ctx.needs_input_grad
        parts = _parts(query, tokens[0].shape[1])
        totals = tuple(
            each.new_zeros(parts, *each.shape) if each is not None and want else None
            for each, want in zip(tokens, wanted, strict=True)
        )
        of_scores = query.new_zeros(query.shape[:3]) if adds else None
        of_query = torch.empty_like(query, memory_format=torch.contiguous_format) if asks else None
        keys, values, asked = Tokens(*tokens[:3]), Tokens(*tokens[3:]), Asked(totals[:3], totals[3:], of_scores)
        groups = [
            group
            for group in groups_of(query, keys, values, ctx.sight, added, ctx.masked, asked)
            if asks or any(each is not None for each in (group.of_key, group.of_value, group.of_scores))
        ]
        if groups:
            delta = (above * out).sum(-1)
            attend_backward(query, groups, ctx.sight.spec.scale, logarithms, above, delta.contiguous(), of_query)
        of_added = None if of_scores is None else of_scores.sum((0, 2)).to(added.dtype)
        return None, None, of_added, of_query, *(None if each is None else _summed(each) for each in totals)


def _parts(query: Tensor, value_heads: int) -> int:
    """Into how many parts a sequence is cut, that all threads have work."""
    threads, T = torch.get_num_threads(), query.shape[2]
    pieces = query.shape[0] * value_heads
    if pieces >= 4 * threads or pieces % threads == 0:
        return 1
    return max(1, min(MOST_PARTS, -(-4 * threads // pieces), T // LEAST_PART))


def _summed(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)
