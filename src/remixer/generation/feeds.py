"""What a causal language model is fed with: token ids, which of them exist, their positions, and another sequence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from remixer.generation.errors import GenerationError
from remixer.passes.stream_graphs import inputs_of
from remixer.rewrite.program import Program

Role = Literal["tokens", "exist", "hidden", "positions", "source"]
KNOWN: dict[str, Role] = {
    "attention_mask": "exist",
    "mask": "exist",
    "key_padding_mask": "hidden",
    "position_ids": "positions",
    "decoder_attention_mask": "exist",
    "decoder_position_ids": "positions",
}


@dataclass(frozen=True)
class Feeds:
    """The inputs that a model was captured with.

    Attributes:
        roles: the name of each, what it stands for, and its dtype.
    """

    roles: tuple[tuple[str, Role, torch.dtype], ...]

    @classmethod
    def of(cls, program: Program, source: Collection[str] = ()) -> Feeds:
        """Those of a program, by their names; what has no known name is the token ids.

        Args:
            program: of the model.
            source: names of the inputs that are of another sequence.

        Raises:
            GenerationError: it has inputs of other kinds.
        """

        def role(name: str) -> Role:
            return "source" if name in source else KNOWN.get(name, "tokens")

        roles = [(node.name, role(node.name), node.meta["val"].dtype) for node in inputs_of(program)]
        ids = [name for name, role, _ in roles if role == "tokens"]
        if len(ids) != 1 or any(role == "tokens" and dtype.is_floating_point for _, role, dtype in roles):
            raise GenerationError(
                "what is written are token ids, beside which a model may take only "
                f"{', '.join(KNOWN)} of as many tokens; this one was captured with "
                f"{', '.join(name for name, role, _ in roles if role != 'source')}"
            )
        return cls(tuple(roles))

    @property
    def masked(self) -> bool:
        """Whether the model is told which tokens exist."""
        return any(role in ("exist", "hidden") for _, role, _ in self.roles)

    @property
    def source(self) -> tuple[str, ...]:
        """The names of the inputs that are of another sequence."""
        return tuple(name for name, role, _ in self.roles if role == "source")

    def existing(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Which of the tokens (B, T) exist, (B, T) bool; None stands for all.

        Raises:
            GenerationError: the tokens are none, or the mask is of others; or some are padding, and the model takes no
                mask.
        """
        if tokens.dim() != 2 or not tokens.numel() or tokens.is_floating_point():
            raise GenerationError(f"expected token ids (B, T), got {tokens.dtype} of shape {tuple(tokens.shape)}")
        if attention_mask is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        if attention_mask.shape != tokens.shape:
            shapes = f"{tuple(attention_mask.shape)} and {tuple(tokens.shape)}"
            raise GenerationError(f"a mask has to be as large as the tokens that it is of, got {shapes}")
        exist = attention_mask.to(torch.bool)
        if not self.masked and not bool(exist.all()):
            raise GenerationError(
                "some tokens are padding, and the model was captured without a mask: give remix an attention_mask "
                "among its inputs"
            )
        return exist

    def tensors(
        self, tokens: Tensor, exist: Tensor, before: Tensor | int, source: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """The inputs, in the model's order.

        Args:
            tokens: (B, T).
            exist: (B, T) bool.
            before: (B,), how many tokens existed before these. Positions count those that exist.
            source: the inputs of another sequence; None where they are known from before.
        """
        count = exist.cumsum(1) + (before[:, None] if isinstance(before, Tensor) else before)
        values: dict[Role, Tensor] = {
            "tokens": tokens,
            "exist": exist,
            "hidden": ~exist,
            "positions": (count - 1).clamp(min=0),
        }
        found = []
        for name, role, dtype in self.roles:
            if role != "source":
                found.append(values[role].to(dtype))
            elif source is not None:
                found.append(source[name].to(dtype))
        return found

    def check(self, rows: int, source: Mapping[str, Tensor] | None) -> None:
        """Raise GenerationError unless what is given of another sequence is what the model reads, for so many rows."""
        given = source or {}
        if set(given) != set(self.source):
            wanted, told = (", ".join(names) or "nothing" for names in (self.source, given))
            raise GenerationError(f"beside its tokens the model reads {wanted}, and source= has {told}")
        for name, tensor in given.items():
            if not tensor.dim() or len(tensor) != rows:
                raise GenerationError(f"{name} has shape {tuple(tensor.shape)}, and there are tokens of {rows} rows")
