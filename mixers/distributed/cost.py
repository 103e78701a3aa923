"""What each scheme of distributed attention sends, holds and needs, and which one a given attention takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from remixer.mixers.distributed.layout import Layout, part_size
from remixer.mixers.spec import AttentionSpec

Scheme = Literal["replicated", "all_gather", "ring", "ulysses"]
SCHEMES: tuple[Scheme, ...] = ("replicated", "all_gather", "ring", "ulysses")


@dataclass(frozen=True)
class Machine:
    """What one process computes on, and how it is tied to the others.

    Attributes:
        flops: floating-point operations a second, as attention reaches them.
        bandwidth: bytes a second that a process can send.
        memory: bytes that gathered keys and values of one attention may take.
    """

    flops: float = 1e11
    bandwidth: float = 1e9
    memory: float = 2**32


CORE = Machine()


@dataclass(frozen=True)
class Task:
    """One attention over so many tokens, by so many processes.

    Attributes:
        spec: of the attention.
        batch: B.
        queries: T.
        keys: S.
        size: P.
        element: bytes of one number.
        training: whether gradients and dropout are wanted.
    """

    spec: AttentionSpec
    batch: int
    queries: int
    keys: int
    size: int
    element: int = 4
    training: bool = False


@dataclass(frozen=True)
class Cost:
    """What one scheme costs each process, for one attention.

    Attributes:
        sent: bytes that it sends in the forward pass.
        sent_back: bytes that it sends in the backward pass.
        held: bytes of keys, values and what else it holds beside its own part.
        seconds: of the forward pass, where what is sent and computed overlap if the scheme lets them.
    """

    sent: int
    sent_back: int
    held: int
    seconds: float


def layout_of(scheme: Scheme, spec: AttentionSpec) -> Layout:
    """Which tokens each process has: zigzag where that evens out the work."""
    even = spec.causal and spec.window[0] is None and not spec.cross
    return "zigzag" if even and scheme in ("ring", "all_gather", "replicated") else "contiguous"


def refusal(scheme: Scheme, task: Task) -> str | None:
    """Why a scheme can't do an attention, or None."""
    spec = task.spec
    if scheme == "ulysses" and spec.heads % task.size:
        return f"{spec.heads} heads can't be spread over {task.size} processes"
    if scheme != "ring":
        return None
    if spec.bias == "dense":
        return "a ring takes no dense mask or bias"
    if spec.skips_padding:
        return "a ring takes no bias whose offsets count existing keys only"
    if spec.sink:
        return "a ring takes no sink"
    if spec.cross or spec.alignment == "end":
        return "a ring needs queries and keys of the same tokens"
    if spec.dropout and task.training:
        return "a ring has no dropout of attention weights"
    if spec.padding and spec.dead_rows not in ("zero", "mean"):
        return f"in a ring, queries that see nothing can't give what they give here ({spec.dead_rows!r})"
    if spec.padding and spec.pads_queries and spec.dead_rows != "zero":
        return "in a ring, queries that don't exist give zero, here the mean of all values"
    return None


def skips_unseen(spec: AttentionSpec, *, training: bool) -> bool:
    """Whether processes that have all keys compute nothing of those that no query of theirs may see.

    So it is where there are such keys, and scores are made as in a ring.
    """
    hides = spec.causal or spec.windowed
    return hides and refusal("ring", Task(spec, 1, 1, 1, 1, training=training)) is None


def cost(scheme: Scheme, task: Task, machine: Machine = CORE) -> Cost:
    """What a scheme sends, to the byte, and about how long it takes.

    The padding mask, a byte for each key, is counted with the keys where there is one.
    """
    sent, back, held = _VOLUMES[scheme](task)
    spec = task.spec
    flops = 2.0 * task.batch * task.queries * task.keys * spec.heads * (spec.head_dim + spec.value_dim) / task.size
    by_rows = scheme == "all_gather" or (scheme == "replicated" and spec.kv_heads % task.size != 0)
    if spec.causal and (not by_rows or skips_unseen(spec, training=task.training)):
        flops /= 2.0
    computing, sending = flops / machine.flops, sent / machine.bandwidth
    seconds = max(computing, sending) if scheme == "ring" else computing + sending
    return Cost(sent, back, held, seconds)


@dataclass(frozen=True)
class Choice:
    """A scheme, and why it is that one."""

    scheme: Scheme
    reason: str


def choose(
    task: Task,
    machine: Machine = CORE,
    *,
    refused: Mapping[Scheme, str] | None = None,
) -> Choice:
    """The fastest scheme for tokens that are spread, which can do an attention and whose keys and values fit.

    Args:
        task: the attention.
        machine: what it runs on.
        refused: schemes that are out for other reasons, and these.
    """
    told = dict(refused or {})
    costs: dict[Scheme, Cost] = {}
    for scheme in SCHEMES[1:]:
        why = told.get(scheme) or refusal(scheme, task)
        found = cost(scheme, task, machine)
        if why is None and found.held > machine.memory:
            why = f"it would hold {found.held / 2**30:.1f} GiB, allowed {machine.memory / 2**30:.1f}"
        if why is None:
            costs[scheme] = found
        else:
            told[scheme] = why
    left = "".join(f"; not {scheme}: {why}" for scheme, why in told.items())
    if not costs:
        return Choice("all_gather", f"it takes any attention{left}")
    best = min(costs, key=lambda scheme: costs[scheme].seconds)
    one = costs[best]
    return Choice(best, f"it sends {one.sent / 2**20:.1f} MiB, about {one.seconds * 1e3:.1f} ms{left}")


def _sizes(task: Task, scheme: Scheme) -> tuple[int, int, int, int]:
    """Bytes of a process's queries, outputs, keys with values, and padding."""
    spec, layout = task.spec, layout_of(scheme, task.spec)
    n, m = (part_size(tokens, task.size, layout) for tokens in (task.queries, task.keys))
    per = task.batch * task.element
    keys = per * m * spec.kv_heads * (spec.head_dim + spec.value_dim)
    exist = task.batch * m if spec.padding else 0
    return per * n * spec.heads * spec.head_dim, per * n * spec.heads * spec.value_dim, keys, exist


def _replicated(task: Task) -> tuple[int, int, int]:
    _, outputs, keys, _ = _sizes(task, "replicated")
    return (task.size - 1) * outputs, (task.size - 1) * outputs, task.size * keys


def _all_gather(task: Task) -> tuple[int, int, int]:
    _, _, keys, exist = _sizes(task, "all_gather")
    return (task.size - 1) * (keys + exist), (task.size - 1) * keys, task.size * (keys + exist)


def _ring(task: Task) -> tuple[int, int, int]:
    _, _, keys, exist = _sizes(task, "ring")
    precise = keys * max(4, task.element) // task.element
    hops = (task.size - 1) * (keys + exist)
    return hops, hops + task.size * precise if task.size > 1 else 0, 2 * (keys + exist)


def _ulysses(task: Task) -> tuple[int, int, int]:
    queries, outputs, keys, exist = _sizes(task, "ulysses")
    if task.spec.kv_heads % task.size:
        keys *= task.spec.groups
    moved = (task.size - 1) * (queries + outputs + keys) // task.size
    return moved + (task.size - 1) * exist, moved, queries + outputs + keys


_VOLUMES: dict[Scheme, Callable[[Task], tuple[int, int, int]]] = {
    "replicated": _replicated,
    "all_gather": _all_gather,
    "ring": _ring,
    "ulysses": _ulysses,
}
