"""What a causal language model is fed with: token ids, which of them exist, and their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from remixer.generation.errors import GenerationError
from remixer.passes.stream_graphs import inputs_of
from remixer.rewrite.program import Program

Role = Literal["tokens", "exist", "hidden", "positions"]
KNOWN: dict[str, Role] = {
    "attention_mask": "exist",
    "mask": "exist",
    "key_padding_mask": "hidden",
    "position_ids": "positions",
}


@dataclass(frozen=True)
class Feeds:
    """The inputs that a model was captured with.

    Attributes:
        roles: what each stands for, and its dtype.
    """

    roles: tuple[tuple[Role, torch.dtype], ...]

    @classmethod
    def of(cls, program: Program) -> Feeds:
        """Those of a program, by their names; what has no known name is the token ids.

        Raises:
            GenerationError: it has inputs of other kinds.
        """
        roles = [(node.name, KNOWN.get(node.name, "tokens"), node.meta["val"].dtype) for node in inputs_of(program)]
        ids = [name for name, role, dtype in roles if role == "tokens"]
        if len(ids) != 1 or any(role == "tokens" and dtype.is_floating_point for _, role, dtype in roles):
            raise GenerationError(
                "what is written are token ids, beside which a model may take only "
                f"{', '.join(KNOWN)}; this one was captured with {', '.join(name for name, *_ in roles)}"
            )
        return cls(tuple((role, dtype) for _, role, dtype in roles))

    @property
    def masked(self) -> bool:
        """Whether the model is told which tokens exist."""
        return any(role in ("exist", "hidden") for role, _ in self.roles)

    def tensors(self, tokens: Tensor, exist: Tensor, before: Tensor | int) -> list[Tensor]:
        """The inputs, in the model's order.

        Args:
            tokens: (B, T).
            exist: (B, T) bool.
            before: (B,), how many tokens existed before these. Positions count those that exist.
        """
        count = exist.cumsum(1) + (before[:, None] if isinstance(before, Tensor) else before)
        values: dict[Role, Tensor] = {
            "tokens": tokens,
            "exist": exist,
            "hidden": ~exist,
            "positions": (count - 1).clamp(min=0),
        }
        return [values[role].to(dtype) for role, dtype in self.roles]
