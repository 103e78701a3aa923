"""What a process's pieces of queries get of keys, and ask of them, wherever the keys came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.mixers.distributed.blocks import Found, attend_block, block_gradients, merged
from remixer.mixers.distributed.pieces import Meeting, Ring, add_by_offset


def attend(found: list[Found], met: Iterable[Meeting], rows: Tensor, key: Tensor, value: Tensor, ring: Ring) -> None:
    """Merge into what each piece has found what it finds in these keys.

    Args:
        found: of each piece; changed.
        met: which pieces of queries and keys meet.
        rows: (B, H, n, D), queries.
        key: (B, G, m, D).
        value: (B, G, m, E).
        ring: how scores are made.
    """
    for mine, cut, other, _, how in met:
        block = attend_block(rows[:, :, cut], key[:, :, other], value[:, :, other], scoring=ring.scoring, **how)
        found[mine] = merged(found[mine], block)


def joined(found: Sequence[Found], everywhere: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All pieces behind one another.

    Args:
        found: of each piece.
        everywhere: (B, G, E), what queries that see nothing give, or None for 0.
        dtype: of the output.

    Returns:
        The output, (B, H, n, E), and the logarithms (B, H, n) of the sums of the exponentials of the scores.
    """
    out, lse = torch.cat([each.out for each in found], 2), torch.cat([each.lse for each in found], 2)
    if everywhere is not None:
        everywhere = everywhere.repeat_interleave(out.shape[1] // everywhere.shape[1], 1)
        out = torch.where((lse == -torch.inf)[..., None], everywhere[:, :, None], out)
    return out.to(dtype).contiguous(), lse.contiguous()


@dataclass(frozen=True)
class Backward:
    """What the gradients of all meetings are made of, and gathered in.

    Attributes:
        rows: (B, H, n, D), queries.
        grads: (B, H, n, E), the output's gradient.
        given: (B, H, n, E), the output.
        lse: (B, H, n), the logarithms of the sums.
        of_query: (B, H, n, D), what is gathered.
        of_bias: (H, 2 S - 1), likewise, or empty where there is no bias.
        bias: whether there is one.
    """

    rows: Tensor
    grads: Tensor
    given: Tensor
    lse: Tensor
    of_query: Tensor
    of_bias: Tensor
    bias: bool

    def ask(
        self, met: Iterable[Meeting], ring: Ring, key: Tensor, value: Tensor, of_key: Tensor, of_value: Tensor
    ) -> None:
        """Add what these meetings ask of queries, bias, and the keys (B, G, m, D) and values (B, G, m, E)."""
        for _, cut, other, places, how in met:
            asked = block_gradients(
                self.grads[:, :, cut],
                self.rows[:, :, cut],
                key[:, :, other],
                value[:, :, other],
                whole=Found(self.given[:, :, cut], self.lse[:, :, cut]),
                scoring=ring.scoring,
                of_mask=self.bias,
                **how,
            )
            self.of_query[:, :, cut] += asked.query
            of_key[:, :, other] += asked.key
            of_value[:, :, other] += asked.value
            if self.bias and asked.mask is not None:
                add_by_offset(self.of_bias, asked.mask, ring, *places)
