"""Matching patterns against a graph, with a reason where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from remixer.rewrite.match import Match, Miss, Taken, arguments
from remixer.rewrite.pattern import Anything, Call, Either, Pattern, Through


class Matcher:
    """Matches one pattern against the nodes of one graph, and remembers the furthest it came.

    Args:
        graph_module: whose nodes are looked at; module classes in patterns are looked up in it.
        pattern: what to look for.
    """

    def __init__(self, graph_module: fx.GraphModule, pattern: Pattern) -> None:
        self.graph_module = graph_module
        self.pattern = pattern
        self._best: tuple[Match, Miss] | None = None

    def match(self, node: fx.Node) -> Match | Miss:
        """The first way in which the pattern ends in this node, or why there is none."""
        self._best = None
        for match in self._value(self.pattern, node, Match(node, self.graph_module)):
            outside = self._read_outside(match)
            if outside is None:
                return match
            self._best = (match, outside)  # nothing comes further than a whole match
        assert self._best is not None, "a failed match leaves its reason"
        return self._best[1]

    def reached(self) -> Match | None:
        """What had been matched when the furthest attempt failed."""
        return self._best[0] if self._best else None

    def _read_outside(self, match: Match) -> Miss | None:
        inner = set(match.inner)
        for node in match.inner:
            if node is match.root or node in match.shared:
                continue
            for user in node.users:
                if user not in inner:
                    return Miss(f"what {word_for(node)} gives is also read by {word_for(user)}", user)
        return None

    def _fail(self, match: Match, miss: Miss) -> None:
        if self._best is None or len(match.inner) > len(self._best[0].inner):
            self._best = (match, miss)

    def _value(self, pattern: Pattern, value: Any, match: Match) -> Iterator[Match]:
        found: Iterator[Match]
        if isinstance(pattern, Anything):
            found = self._anything(pattern, value, match)
        elif isinstance(pattern, Call):
            found = self._call(pattern, value, match)
        elif isinstance(pattern, Either):
            found = (
                result._with(tags={pattern.name: tag})
                for tag, option in pattern.options
                for result in self._value(option, value, match)
            )
        elif isinstance(pattern, Through):
            found = self._through(pattern, value, match, (), set())
        elif isinstance(pattern, (list, tuple)) and isinstance(value, (list, tuple)):
            if len(pattern) == len(value):
                found = self._operands(tuple(pattern), list(value), match)
            else:
                found = self._literal(list(pattern), value, match)
        else:
            found = self._literal(pattern, value, match)
        for result in found:
            name = pattern.name if isinstance(pattern, Pattern) else ""
            if name and name in match.values and match.values[name] is not value:
                self._fail(result, Miss(f"two different values stand for {name!r}", result.root))
            elif name and not isinstance(pattern, Through):
                yield result._with(values={name: value})
            else:
                yield result

    def _anything(self, pattern: Anything, value: Any, match: Match) -> Iterator[Match]:
        node = isinstance(value, fx.Node)
        if pattern.constant and (node or not isinstance(value, (int, float))):
            self._fail(match, Miss(f"{pattern.name} is {word_for(value)}, expected a number", _at(value, match)))
        elif pattern.tensor and not node:
            self._fail(match, Miss(f"{pattern.name} is {value!r}, expected a tensor", match.root))
        else:
            yield match

    def _literal(self, expected: Any, value: Any, match: Match) -> Iterator[Match]:
        if not isinstance(value, fx.Node) and value == expected:
            yield match
        else:
            last = match.inner[-1] if match.inner else match.root
            self._fail(match, Miss(f"an argument is {word_for(value)}, expected {expected!r}", last))

    def _call(self, pattern: Call, value: Any, match: Match) -> Iterator[Match]:
        if not isinstance(value, fx.Node) or not self._targets(value, pattern.targets):
            wanted = " or ".join(sorted({_target_name(target) for target in pattern.targets}))
            self._fail(match, Miss(f"expected {wanted}, found {word_for(value)}", _at(value, match)))
            return
        given = list(arguments(value).values())
        if len(given) < len(pattern.operands):
            self._fail(match, Miss(f"{value.name} has too few arguments", value))
            return
        unlisted = _set_beyond(value, len(pattern.operands))
        if unlisted and not pattern.rest:
            name, actual = unlisted[0]
            self._fail(match, Miss(f"argument {name!r} of {value.name} is set to {actual!r}", value))
            return
        shared = frozenset([value]) if pattern.shared else frozenset()
        named = {pattern.name: value} if pattern.name else {}
        start = match._with(inner=(value,), shared=shared, values=named)
        orders = [given]
        if pattern.commutes and not unlisted:  # a + alpha * b does not commute
            orders.append([given[1], given[0], *given[2:]])
        for order in orders:
            yield from self._operands(pattern.operands, order, start)

    def _operands(self, patterns: tuple[Any, ...], values: list[Any], match: Match) -> Iterator[Match]:
        if not patterns:
            yield match
            return
        for result in self._value(patterns[0], values[0], match):
            yield from self._operands(patterns[1:], values[1:], result)

    def _through(
        self, pattern: Through, value: Any, match: Match, path: tuple[Taken, ...], hopeless: set[fx.Node]
    ) -> Iterator[Match]:
        """`hopeless` holds nodes that no chain leads on from, lest x * x * ... be tried 2^n times."""
        reached = False
        for result in self._value(pattern.inner, value, match):
            reached = True
            yield result._with(paths={pattern.name: path})
        if not isinstance(value, fx.Node) or value in hopeless:
            return
        for step in pattern.steps:
            if not self._targets(value, step.targets):
                continue
            given = list(arguments(value).values())
            for operand in step.operands:
                came = given[operand] if operand < len(given) else None
                came = came[0] if isinstance(came, (list, tuple)) and came else came
                if isinstance(came, fx.Node):
                    further = match._with(inner=(value,))
                    taken = (*path, Taken(value, operand))
                    for result in self._through(pattern, came, further, taken, hopeless):
                        reached = True
                        yield result
        if not reached:
            hopeless.add(value)

    def _targets(self, node: fx.Node, targets: tuple[Any, ...]) -> bool:
        if node.op == "call_function":
            return node.target in targets
        if node.op == "call_module":
            module = self.graph_module.get_submodule(str(node.target))
            return isinstance(module, tuple(t for t in targets if isinstance(t, type) and issubclass(t, nn.Module)))
        return False


def _set_beyond(node: fx.Node, count: int) -> list[tuple[str, Any]]:
    """The arguments behind the first so many that don't have their default."""
    defaults: dict[str, Any] = {}
    if isinstance(node.target, torch._ops.OpOverload):
        defaults = {
            argument.name: argument.default_value if argument.has_default_value() else None
            for argument in node.target._schema.arguments
        }
    found = []
    for name, actual in list(arguments(node).items())[count:]:
        default = defaults.get(name)
        if actual is not default and (name not in defaults or isinstance(actual, fx.Node) or actual != default):
            found.append((name, actual))
    return found


def _target_name(target: Any) -> str:
    return str(target._schema.name.replace("::", ".")) if hasattr(target, "_schema") else target.__name__


def word_for(value: Any) -> str:
    """How reasons call an argument: a node by its operator, anything else by its value."""
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op == "output":
        return "the output"
    return f"{value.name} ({value.op})" if value.op != "call_function" else _target_name(value.target)


def _at(value: Any, match: Match) -> fx.Node:
    return value if isinstance(value, fx.Node) else (match.inner[-1] if match.inner else match.root)
