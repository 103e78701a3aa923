"""The interface of a token mixer: y = P(x) v, a mixing matrix P applied to values.

Shape letters, the same everywhere: B batch, H query heads, G key/value heads, T query length, S key length,
D head size, E value size, C model width.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from remixer.mixers.errors import MixerConfigError, NoStepError
from remixer.mixers.spec import AttentionSpec

if TYPE_CHECKING:
    from remixer.mixers.start import Starter

Order = Literal["n", "n log n", "n^2"]
State = dict[str, Tensor]
OPERANDS = ("query", "key", "value", "padding", "bias", "source", "sink")


@dataclass(frozen=True)
class Unsupported:
    """Why a mixer can't take the place of an attention: a clause that fits after "cannot replace ...:"."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class MixerConfig:
    """What a user writes to ask for a mixer: a frozen dataclass of its options.

    A subclass checks its values in `__post_init__` and raises MixerConfigError. Configs are hashable, compare
    by value, and `to_dict` gives what JSON can hold.
    """

    name: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """The options and the mixer's name, for reports and artifacts."""
        return {"mixer": self.name, **dataclasses.asdict(self)}

    def require(self, condition: bool, message: str) -> None:
        """Raise MixerConfigError, naming this config, unless the condition holds."""
        if not condition:
            raise MixerConfigError(f"{type(self).__name__}: {message}")


class Mixer(nn.Module, abc.ABC):
    """Takes the place of one attention.

    Class attributes:
        Config: the config's class.

    Attributes:
        spec: the attention that this mixer stands in for.
        config: the options it was built with.
        operands: names of the operands that `forward` needs, out of OPERANDS. Only these are wired to the
            graph; what nobody needs any more is swept away with its parameters.
        of_tokens: names of the entries of its state that nothing decides but which tokens exist: mixers with the same
            options share them.
        writes_of_tokens: whether `step` may write into the memory of these entries.
        steps_several: whether `step` takes several tokens at once too: (B, H, T, D) instead of (B, H, 1, D).
    """

    Config: ClassVar[type[MixerConfig]]
    spec: AttentionSpec
    config: MixerConfig
    operands: tuple[str, ...] = ("query", "key", "value", "padding")
    of_tokens: tuple[str, ...] = ()
    writes_of_tokens: ClassVar[bool] = True
    steps_several: ClassVar[bool] = False

    def __init__(self, spec: AttentionSpec, config: MixerConfig) -> None:
        super().__init__()
        self.spec = spec
        self.config = config

    @classmethod
    @abc.abstractmethod
    def supports(cls, spec: AttentionSpec, config: Any) -> Unsupported | None:
        """None where this mixer with this config can replace such an attention, else the reason."""

    @classmethod
    def from_attention(cls, spec: AttentionSpec, config: Any) -> Self:
        """A mixer that starts as near to the pretrained attention as it can."""
        return cls(spec, config)

    @property
    @abc.abstractmethod
    def order(self) -> Order:
        """How the time of `forward` grows with the length."""

    @abc.abstractmethod
    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """Mix the values of all tokens.

        Args:
            query: (B, H, T, D), not yet scaled.
            key: (B, G, S, D).
            value: (B, G, S, E).
            padding: (B, S) bool, True where a key exists, or None where all do.
            bias: what is added to the scaled scores. A dense one is broadcastable to (B, H, T, S) and carries the
                whole mask; one by offset is (H, 2 T - 1), for keys T - 1 before the query to T - 1 after it.
            source: (B, S, C), the hidden state that the key projection reads.

        Returns:
            (B, H, T, E) in the dtype of value.
        """

    @abc.abstractmethod
    def reference(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """`forward` in its slow, obvious form: the same arguments, values and gradients."""

    def flops(self, tokens: int) -> float:
        """Floating-point operations of `forward` on one sequence of so many tokens; a product and a sum are two.

        Those that are not products of matrices or transforms are left out, as are the projections around.

        Raises:
            NotImplementedError: this mixer doesn't say; a plan can go by seconds then.
        """
        raise NotImplementedError(f"{self.config.name!r} doesn't say how many operations it takes: plan by seconds")

    def learning_rate(self, name: str) -> float:
        """How large the steps of Adam may be for one of its parameters when it learns from a pretrained attention."""
        return 1e-3

    def starters(self) -> tuple[Starter, ...]:
        """What sets parameters in closed form before any gradient step, one after the other; here nothing."""
        return ()

    def by_head(self) -> Mapping[str, Literal["heads", "kv_heads"]] | None:
        """Weights whose rows belong to heads, head by head, and to which heads.

        None where heads know of one another, so that none of them can be computed without the others.
        """
        return None

    def remembers(self, length: int) -> int:
        """How many tokens a state has to be made for where there are `length` in all.

        They are fewer where the oldest weigh nothing: a state made for these gives the same, and goes on beyond.
        """
        return length

    def initial_state(self, batch: int, length: int, like: Tensor) -> State:
        """What `step` knows before the first token: tensors of fixed shapes, by name.

        Args:
            batch: B.
            length: how many tokens there will be at most.
            like: gives dtype and device.

        Raises:
            NoStepError: this mixer can't go token by token.
        """
        raise NoStepError(f"{self.config.name!r} can't go token by token")

    def step(
        self,
        state: State,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """What `forward` gives for the next token, from that token alone and the state.

        Args:
            state: of the tokens before; it must not be used again, since its memory may be.
            query: (B, H, 1, D).
            key: (B, G, 1, D).
            value: (B, G, 1, E).
            padding: (B, 1) bool, whether the token exists, or None.
            bias: see `forward`; one by offset is (H, 2 length - 1) for the length that the state was made for.
            source: (B, 1, C).

        Returns:
            (B, H, 1, E), and the state of all tokens up to this one.

        Raises:
            NoStepError: this mixer can't go token by token.
        """
        raise NoStepError(f"{self.config.name!r} can't go token by token")

    def prefill(self, length: int, **operands: Tensor | None) -> tuple[Tensor, State]:
        """What `forward` gives for the first tokens, and the state after them, from which `step` goes on.

        Args:
            length: how many tokens there will be at most, those to come included; see `initial_state`.
            operands: see `forward`; a bias by offset is (H, 2 length - 1).

        Returns:
            (B, H, T, E), and the state.

        Raises:
            NoStepError: this mixer can't go token by token.
        """
        given, value, bias = dict(operands), operands["value"], operands.get("bias")
        assert value is not None
        if bias is not None:
            T = value.shape[2]
            given["bias"] = bias[:, length - T : length + T - 1]
        return self.forward(**given), self.state_after(length, **operands)

    def state_after(self, length: int, **operands: Tensor | None) -> State:
        """The state after these first tokens; see `prefill`. Here one after the other, which no graph can hold."""
        value = operands["value"]
        assert value is not None
        if torch.compiler.is_compiling():
            raise NoStepError(f"{self.config.name!r} takes tokens in one by one with these options, a graph can't")
        if "query" in self.operands and operands.get("query") is None:
            raise NoStepError(f"{self.config.name!r} needs the queries of the tokens before too, with these options")
        state = self.initial_state(value.shape[0], length, value)
        for t in range(value.shape[2]):
            _, state = self.step(state, **{name: token_of(name, each, t) for name, each in operands.items()})
        return state


def token_of(name: str, operand: Tensor | None, t: int) -> Tensor | None:
    """What `step` is given of an operand of several tokens, see `Mixer.forward`, for one of them."""
    if operand is None or name in ("bias", "sink"):
        return operand
    return operand.narrow(1 if name in ("padding", "source") else 2, t, 1)
