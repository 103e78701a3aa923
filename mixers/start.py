"""Closed-form starts: what a mixer can take over from a pretrained attention before any gradient step."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.softmax import exact_attention
from remixer.mixers.spec import AttentionSpec


class Starter(abc.ABC):
    """Watches an attention over some batches, then sets parameters of the mixer in its place."""

    @abc.abstractmethod
    def watch(self, target: Tensor, operands: Mapping[str, Tensor]) -> None:
        """Take in one batch.

        Args:
            target: what the attention gives, (B, H, T, E).
            operands: all that it reads; see `Mixer.forward`.
        """

    @abc.abstractmethod
    def settle(self) -> None:
        """Set the parameters to what was seen."""


def some_rows(spec: AttentionSpec, operands: Mapping[str, Tensor], queries: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """The weights that some queries of a self-attention, at even distances, give to all keys.

    Args:
        spec: of the attention.
        operands: all that it reads; see `Mixer.forward`.
        queries: how many at most: what it costs is linear in the length then.

    Returns:
        Which queries (n,), their weights (B, H, n, T) in float64, 0 for queries and keys that don't exist, and which
        tokens do (B, T).
    """
    query, key, exist = operands["query"], operands["key"], operands.get("padding")
    (B, _, T, _), G = query.shape, key.shape[1]
    rows = torch.linspace(0, T - 1, min(T, queries), device=query.device).long().unique()
    # With the unit matrix for values, what an attention gives is its weights.
    unit = torch.eye(T, dtype=query.dtype, device=query.device).expand(B, G, T, T)
    bias = operands.get("bias")
    if bias is not None and spec.bias == "dense" and bias.shape[-2] > 1:
        bias = bias[..., rows, :]
    weights = exact_attention(
        query[:, :, rows],
        key,
        unit,
        spec=spec,
        padding=exist,
        bias=bias,
        sink=operands.get("sink"),
        rows=rows,
        queries=T,
    ).double()
    present = query.new_ones(B, T, dtype=torch.bool) if exist is None else exist
    return rows, weights * (present[:, None, rows, None] & present[:, None, None]), present


class Profile:
    """What weight an attention gives to each offset i - j between query i and key j, per head.

    Args:
        spec: of the attention.
        queries: of each sequence, so many queries at even distances are looked at: what it costs is linear then.
    """

    def __init__(self, spec: AttentionSpec, queries: int = 64) -> None:
        self.spec, self.queries = spec, queries
        self._sums: list[Tensor] = []  # (H, 2 T - 1) of each batch
        self._spans: list[Tensor] = []  # (n, 2): the least and the greatest offset of each query's keys

    def watch(self, operands: Mapping[str, Tensor]) -> None:
        """Take in one batch of self-attention's operands."""
        rows, weights, present = some_rows(self.spec, operands, self.queries)
        _, H, _, T = weights.shape
        place = (rows[:, None] - torch.arange(T, device=rows.device) + T - 1).flatten()
        sums = weights.new_zeros(H, 2 * T - 1)
        self._sums.append(sums.index_add_(1, place, weights.sum(0).flatten(1)))
        self._spans.append(self._span(present, rows))

    def _span(self, present: Tensor, rows: Tensor) -> Tensor:
        """(n, 2), from which offset to which the keys of each existing query lie, gaps between them not counted."""
        T = present.shape[1]
        places = torch.arange(T, device=present.device)
        first = torch.where(present, places, T).amin(1, keepdim=True)
        last = torch.where(present, places, -1).amax(1, keepdim=True)
        least, greatest = rows - last, rows - first
        left, right = self.spec.window
        if self.spec.causal:
            least = least.clamp(min=0)
        elif right is not None:
            least = least.clamp(min=-right)
        if left is not None:
            greatest = greatest.clamp(max=left)
        return torch.stack([least, greatest], -1)[present[:, rows] & (greatest >= least)]

    def weights(self) -> tuple[Tensor, Tensor]:
        """All weight given to each offset, and how many pairs have it: (H, 2 T - 1) and (2 T - 1,) in float64.

        Offsets go from -(T-1) to T-1, T being the longest sequence that was watched.
        """
        longest = max(sums.shape[1] for sums in self._sums)
        pads = [(longest - sums.shape[1]) // 2 for sums in self._sums]
        sums = torch.stack([F.pad(each, (pad, pad)) for each, pad in zip(self._sums, pads, strict=True)]).sum(0)
        return sums, self._within(sums.new_ones(sum(len(span) for span in self._spans)), longest)

    def shares(self, steps: int = 20) -> Tensor:
        """The t (H, 2 T - 1) of the rows P_ij = t_{i-j} / sum of t that are nearest to those of the attention.

        They maximise the sum of P log t, by the minorise-maximise steps of Hunter, 2004, "MM algorithms for generalized
        Bradley-Terry models", equation 3: t_k = weight of k / sum over the rows that have k of 1 / (their sum of t).
        """
        given, pairs = self.weights()
        t = (given / pairs.clamp(min=1.0)).clamp(min=0.0)
        middle = t.shape[1] // 2
        spans = torch.cat(self._spans) + middle
        for _ in range(steps):
            running = F.pad(t.cumsum(1), (1, 0))
            row_sums = running[:, spans[:, 1] + 1] - running[:, spans[:, 0]]
            inverse = 1.0 / row_sums.clamp(min=torch.finfo(t.dtype).tiny)
            t = given / self._within(inverse, t.shape[1]).clamp(min=torch.finfo(t.dtype).tiny)
            t = t / t.amax(1, keepdim=True).clamp(min=torch.finfo(t.dtype).tiny)
        return t

    def _within(self, numbers: Tensor, offsets: int) -> Tensor:
        """For each offset, the sum of the numbers (..., n) of the queries that have it."""
        spans = torch.cat(self._spans) + offsets // 2
        steps = numbers.new_zeros(*numbers.shape[:-1], offsets + 1)
        steps.index_add_(-1, spans[:, 0], numbers).index_add_(-1, spans[:, 1] + 1, -numbers)
        return steps.cumsum(-1)[..., :-1]
