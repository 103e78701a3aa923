"""Patterns: what a rule looks for, written as ordinary code on a recorder.

A pattern describes a value and, through its operands, the subgraph that computes it. Four kinds suffice:
anything, a constant, a call of an operator, and a value seen through a chain of operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from remixer.rewrite.errors import PatternError

Target = Any  # an OpOverload, a Python function of sizes, or a module class


@dataclass(frozen=True)
class Pattern:
    """Something that a value in the graph may be. `name` is how a match hands it out."""

    name: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Anything(Pattern):
    """Any value. With `constant`, a Python number only; with `tensor`, a node only."""

    constant: bool = False
    tensor: bool = False


@dataclass(frozen=True)
class Call(Pattern):
    """A call of one of some operators (or modules of some class) on operands.

    Attributes:
        targets: overloads, functions or module classes.
        operands: patterns or plain values of the first arguments, in the order of the operator's schema.
            Arguments that are not listed must have their default, unless `rest` is set.
        rest: arguments beyond the listed ones may be anything.
        commutes: the first two operands may come in either order, where the rest have their defaults.
        shared: others may read the value too, and go on reading it after the rewrite.
    """

    targets: tuple[Target, ...]
    operands: tuple[Any, ...]
    rest: bool = False
    commutes: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Either(Pattern):
    """The first of several patterns that matches; the match knows which by its tag."""

    options: tuple[tuple[str, Pattern], ...]


@dataclass(frozen=True)
class Step:
    """An operator that a chain may lead through, and the operands that the chain may come in by.

    By an operand that is a list, as those of `cat`, the chain comes in as its first item.
    """

    targets: tuple[Target, ...]
    operands: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Through(Pattern):
    """A value that is `inner`, or comes from it through any number of steps, in any order."""

    inner: Pattern
    steps: tuple[Step, ...]


def overloads(target: Target) -> tuple[Target, ...]:
    """All overloads of an operator given by name ("aten.add", "aten.add.Tensor"), packet or overload."""
    if isinstance(target, str):
        found: Any = torch.ops
        for part in target.split("."):
            try:
                found = getattr(found, part)
            except AttributeError as error:
                raise PatternError(f"there is no operator {target!r}: torch.ops has no {part!r}") from error
        target = found
    if isinstance(target, torch._ops.OpOverloadPacket):
        return tuple(getattr(target, name) for name in target.overloads())
    if callable(target) or (isinstance(target, type) and issubclass(target, nn.Module)):
        return (target,)
    raise PatternError(f"expected an operator, a function or a module class, got {target!r}")


def _targets(target: Target | Iterable[Target]) -> tuple[Target, ...]:
    several = target if isinstance(target, (tuple, list, set, frozenset)) else (target,)
    return tuple(one for item in several for one in overloads(item))


class Recorder:
    """What a rule's `pattern` writes its pattern with.

    Examples:
        >>> p = Recorder()
        >>> linear = p.call("aten.linear", p.any("x"), p.any("w"), p.any("b"))
        >>> p.call("aten.relu", linear, name="out").name
        'out'
    """

    def any(self, name: str) -> Pattern:
        """Any value; the same name twice means the same value."""
        return Anything(name=name)

    def tensor(self, name: str) -> Pattern:
        """Any node of the graph, no plain number."""
        return Anything(name=name, tensor=True)

    def constant(self, name: str) -> Pattern:
        """A Python number."""
        return Anything(name=name, constant=True)

    def call(
        self,
        target: Target | Iterable[Target],
        *operands: Any,
        name: str = "",
        rest: bool = False,
        commutes: bool = False,
        shared: bool = False,
    ) -> Pattern:
        """A call; see Call. Targets may be names such as "aten.softmax.int"."""
        if commutes and len(operands) < 2:
            raise PatternError(f"only two operands can commute, there are {len(operands)}")
        return Call(_targets(target), operands, rest, commutes, shared, name=name)

    def either(self, name: str, **options: Pattern) -> Pattern:
        """One of several spellings, tried in order; `match.tag(name)` tells which."""
        return Either(tuple(options.items()), name=name)

    def step(self, target: Target | Iterable[Target], *operands: int) -> Step:
        """A step of a chain; it may come in by the operands at these positions (default: the first)."""
        return Step(_targets(target), operands or (0,))

    def through(self, inner: Pattern, steps: Sequence[Step], name: str) -> Pattern:
        """A value that comes from `inner` through steps; `match.path(name)` gives those met."""
        return Through(inner, tuple(steps), name=name)


def roots(pattern: Pattern) -> frozenset[Target]:
    """The targets that a match's last node can have.

    Raises:
        PatternError: the pattern could match anything.
    """
    if isinstance(pattern, Call):
        return frozenset(pattern.targets)
    if isinstance(pattern, Either):
        return frozenset().union(*(roots(option) for _, option in pattern.options))
    if isinstance(pattern, Through):
        return roots(pattern.inner).union(*(step.targets for step in pattern.steps))
    raise PatternError("a pattern must end in a call: one that ends in `any` would match every node")
