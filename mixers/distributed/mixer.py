"""Softmax attention, exact, partitioned over processes (Liu et al., 2023; Jacobs et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from remixer.mixers.base import Mixer, MixerConfig, Order, Unsupported
from remixer.mixers.distributed.collectives import gathered
from remixer.mixers.distributed.cost import SCHEMES as NAMES
from remixer.mixers.distributed.cost import Choice, Task, choose, layout_of, refusal
from remixer.mixers.distributed.layout import own_places
from remixer.mixers.distributed.ranks import Ranks, ranks_of
from remixer.mixers.distributed.schemes import SCHEMES, Operands, Spread, of_own_rows
from remixer.mixers.registry import register
from remixer.mixers.softmax import Softmax, exact_attention
from remixer.mixers.spec import AttentionSpec


@dataclass(frozen=True)
class Distributed(MixerConfig):
    """Keep the attention's meaning; its work is shared by the processes of torch.distributed.

    Attributes:
        scheme: "replicated": every process has all queries, keys and values, and does a part of the heads or of the
            rows. "all_gather": it has a part of the tokens, and gathers keys and values. "ring": keys and values go
            round. "ulysses": all-to-all from a part of the tokens to a part of the heads, and back. "auto" chooses.
        mesh_dim: the dimension of the mesh whose processes share a sequence; without a mesh, all do.
    """

    scheme: Literal["auto", "replicated", "all_gather", "ring", "ulysses"] = "auto"
    mesh_dim: str = "sequence"

    def __post_init__(self) -> None:
        names = ("auto", *NAMES)
        self.require(self.scheme in names, f"scheme must be one of {', '.join(names)}, got {self.scheme!r}")


@register("distributed")
class DistributedMixer(Mixer):
    """Softmax attention over processes. In one process it is `Softmax`.

    Attributes:
        spread: whether the operands are of this process's tokens only, and so is what it gives. Otherwise all processes
            are given the same whole sequence, and give it.
    """

    Config = Distributed
    config: Distributed

    def __init__(self, spec: AttentionSpec, config: Distributed | None = None) -> None:
        super().__init__(spec, config or Distributed())
        self.alone = Softmax(spec)
        self.operands = self.alone.operands
        self.spread = False

    @classmethod
    def supports(cls, spec: AttentionSpec, config: Distributed) -> Unsupported | None:
        """Every attention that was understood, by one scheme or another."""
        if config.scheme == "auto":
            return None
        # How many processes there will be is not known yet: one for each head fits what else is asked.
        why = refusal(config.scheme, Task(spec, 1, 1, 1, spec.heads))
        return None if why is None else Unsupported(f"{why}. Leave the scheme to 'auto'")

    @property
    def order(self) -> Order:
        """Quadratic: every query meets every key, if on different processes."""
        return "n^2"

    def choice(self, task: Task) -> Choice:
        """The scheme that an attention of this size takes.

        Raises:
            ValueError: the one that was asked for can't do it.
        """
        scheme = self.config.scheme
        if scheme == "auto":
            return choose(task) if self.spread else Choice("replicated", "every process has the whole sequence")
        why = refusal(scheme, task)
        if why is not None:
            raise ValueError(f"attention can't be distributed by {scheme!r}: {why}. Leave the scheme to 'auto'")
        return Choice(scheme, "it was asked for")

    def forward(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """See Mixer.forward. Collective: all processes have to call it, with tensors of the same shapes.

        Raises:
            ValueError: the scheme that was asked for can't do it with so many processes.
        """
        assert query is not None
        assert key is not None
        assert value is not None
        ranks = ranks_of(self.config.mesh_dim)
        if ranks.size == 1:
            whole: Tensor = self.alone(query, key, value, padding=padding, bias=bias, sink=sink)
            return whole
        (B, _, T, _), S = query.shape, key.shape[2]
        task = Task(self.spec, B, T, S, ranks.size, query.element_size(), self.training)
        scheme = self.choice(task).scheme
        dropout = self.spec.dropout if self.training else 0.0
        given = Operands(query, key, value, padding, bias, sink)
        spread = Spread(self.spec, ranks, layout_of(scheme, self.spec), T, S)
        if scheme == "replicated":
            return _replicated(given, spread, dropout)
        return spread.whole(SCHEMES[scheme](_parts(given, spread), spread, dropout), 2, T)

    def reference(
        self,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        bias: Tensor | None = None,
        source: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> Tensor:
        """That of `Softmax`, in one process."""
        return self.alone.reference(query, key, value, padding=padding, bias=bias, source=source, sink=sink)


def _parts(given: Operands, spread: Spread) -> Operands:
    """What this process has of a whole sequence. Places beyond its end hold its last token, and a ring skips them."""
    T, S = spread.queries, spread.keys
    bias = given.bias
    by_row = bias is not None and spread.spec.bias == "dense" and bias.shape[-2] != 1
    if bias is not None and by_row:
        bias = spread.part(bias, bias.dim() - 2, T)
    return Operands(
        spread.part(given.query, 2, T),
        spread.part(given.key, 2, S),
        spread.part(given.value, 2, S),
        None if given.padding is None else spread.part(given.padding, 1, S),
        bias,
        given.sink,
        by_row,
    )


def _replicated(given: Operands, spread: Spread, dropout: float) -> Tensor:
    """A part of the heads where all processes get as many, else of the rows; the outputs are gathered."""
    spec, ranks = spread.spec, spread.ranks
    if spec.kv_heads % ranks.size == 0:
        return gathered(_some_heads(given, spec, ranks, dropout), 1, ranks)
    own = _parts(given, spread)
    mixed = of_own_rows(replace(own, key=given.key, value=given.value, padding=given.padding), spread, dropout)
    return spread.whole(mixed, 2, spread.queries)


def _some_heads(given: Operands, spec: AttentionSpec, ranks: Ranks, dropout: float) -> Tensor:
    heads, kv_heads = spec.heads // ranks.size, spec.kv_heads // ranks.size
    mine, theirs = (own_places(given.query, count, ranks, "contiguous") for count in (heads, kv_heads))
    bias = given.bias
    if bias is not None:
        dim = 0 if spec.bias == "offset" else bias.dim() - 3
        bias = bias if dim < 0 or bias.shape[dim] == 1 else bias.index_select(dim, mine)
    return exact_attention(
        given.query.index_select(1, mine),
        given.key.index_select(1, theirs),
        given.value.index_select(1, theirs),
        spec=replace(spec, heads=heads, kv_heads=kv_heads),
        padding=given.padding,
        bias=bias,
        sink=None if given.sink is None else given.sink.index_select(0, mine),
        dropout=dropout,
    )
