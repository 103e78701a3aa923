"""What a program's file holds, field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from remixer.mixers import AttentionSpec, MixerConfig
from remixer.passes.sites import SiteRecord
from remixer.rewrite.editor import Origin
from remixer.rewrite.program import StaticDimension

FORMAT = 1


@dataclass(frozen=True)
class SymbolRecord:
    """A symbol of sizes.

    Attributes:
        low: its smallest value.
        high: its largest value, None if it is unbounded.
        hint: its value in the example, None if it depends on the inputs' numbers.
    """

    low: int
    high: int | None = None
    hint: int | None = None


@dataclass(frozen=True)
class TensorRecord:
    """A weight.

    Attributes:
        name: in the model.
        key: in the file of weights; tied ones share one.
        kind: "transient" is a buffer that a state_dict doesn't have.
        grad: whether it is trained.
    """

    name: str
    key: str
    kind: Literal["parameter", "buffer", "transient"]
    grad: bool = False


@dataclass(frozen=True)
class NodeRecord:
    """A node of a graph; see `graphs.written_argument` and `recorded.written`.

    Attributes:
        name: of the node.
        op: as torch.fx has it.
        target: name of what it calls or gets.
        args: positional operands.
        kwargs: named operands.
        val: what is known of its value.
        stack: place in `ProgramRecord.stacks`.
        trace: place in `ProgramRecord.traces`.
        origin: where it came from, if a pass added it.
        site: of a mixer.
    """

    name: str
    op: Literal["placeholder", "get_attr", "call_function", "call_module", "output"]
    target: str
    args: Any = None
    kwargs: Any = None
    val: Any = None
    stack: int | None = None
    trace: int | None = None
    origin: Origin | None = None
    site: SiteRecord | None = None


@dataclass(frozen=True)
class SignatureRecord:
    """How a graph is called.

    Attributes:
        names: of its arguments.
        inputs: how they are nested; see `structures`.
        outputs: how its outputs are nested.
    """

    names: tuple[str, ...]
    inputs: Any
    outputs: Any = None


@dataclass(frozen=True)
class GraphRecord:
    """A graph.

    Attributes:
        nodes: in their order.
        signature: None for one that is called with its placeholders.
    """

    nodes: tuple[NodeRecord, ...]
    signature: SignatureRecord | None = None


@dataclass(frozen=True)
class ModuleRecord:
    """A module that a graph calls, or hands to an operator.

    Attributes:
        path: in the model.
        kind: what it is.
        spec: of a mixer's attention.
        config: of a mixer.
        p: of a dropout.
        drops: which dropout.
        graph: of a graph that an operator runs.
    """

    path: str
    kind: Literal["mixer", "dropout", "probability", "graph"]
    spec: AttentionSpec | None = None
    config: MixerConfig | None = None
    p: float = 0.0
    drops: Literal["dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"] = "dropout"
    graph: GraphRecord | None = None


@dataclass(frozen=True)
class ExampleRecord:
    """Example inputs.

    Attributes:
        structure: how they are nested, positional ones and named ones.
        values: a tensor's key in the file of examples, as ["tensor", key], or a plain value, as ["value", it].
    """

    structure: Any
    values: tuple[tuple[Literal["tensor", "value"], Any], ...]


@dataclass(frozen=True)
class ProgramRecord:
    """A program. See `rewrite.program.Program` for what isn't said here.

    Attributes:
        symbols: of its sizes.
        batch: names of symbols.
        length: names of symbols.
        limits: by symbol.
        static: dimensions that are fixed.
        notes: on the capture.
        extended: how it was made longer.
        example: inputs.
        graph: the model's.
        modules: that it calls.
        tensors: its weights.
        training: whether it is in training mode.
        others: modules that are in the other mode.
        traces: stacks of source lines, that nodes came from.
        stacks: of modules that nodes came from: key, path and class of each.
    """

    symbols: dict[str, SymbolRecord]
    batch: tuple[str, ...]
    length: tuple[str, ...]
    limits: dict[str, tuple[int, int | None]]
    static: tuple[StaticDimension, ...]
    notes: tuple[str, ...]
    extended: tuple[str, ...]
    example: ExampleRecord
    graph: GraphRecord
    modules: tuple[ModuleRecord, ...]
    tensors: tuple[TensorRecord, ...]
    training: bool
    others: tuple[str, ...]
    traces: tuple[str, ...]
    stacks: tuple[tuple[tuple[str, str, str], ...], ...]
