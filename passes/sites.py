"""Sites: the attentions of a program, as the passes hand them on.

A recognised attention stands in the graph as a call of a `Softmax` mixer, the canonical operator, whose spec
says what it computes. The subgraph that it was read from stays beside it until it is swept, so that a site
which can't be proven, or which nobody chose, goes back to what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from remixer.mixers import AttentionSpec, Mixer
from remixer.rewrite.program import Program


@dataclass(frozen=True)
class SiteRecord:
    """What a site's node remembers, in names that survive copies of the graph.

    Attributes:
        name: module path that the attention came from; unique in the program.
        rule: the rule that recognised it.
        source: "file.py:line" of its product with the values.
        kind: class name of the module.
        original: node that gave the attention's output before.
        result: node that gives it now: the site's own, or its reshape into the original's layout.
        cuts: nodes that both the original and the canonical form start from, by operand.
        masks: nodes that the mask is made from; both forms start from these too where the mask's meaning is
            not known.
        note: why its mask was not understood, if so.
        error: largest error of the proof, or None before it.
    """

    name: str
    rule: str
    source: str
    kind: str
    original: str
    result: str
    cuts: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
    note: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Site:
    """One attention of a program: its node, its mixer module and its record."""

    node: fx.Node
    mixer: Mixer
    record: SiteRecord

    @property
    def name(self) -> str:
        """Module path that it came from."""
        return self.record.name

    @property
    def spec(self) -> AttentionSpec:
        """What it computes."""
        return self.mixer.spec

    def operand(self, name: str) -> fx.Node | None:
        """The node wired to an operand."""
        node = self.node.kwargs.get(name)
        return node if isinstance(node, fx.Node) else None


def sites_of(program: Program) -> list[Site]:
    """All sites of a program, in the graph's order."""
    found = []
    for node in program.graph.nodes:
        if node.op == "call_module" and "site" in node.meta:
            mixer = program.graph_module.get_submodule(str(node.target))
            assert isinstance(mixer, Mixer)
            found.append(Site(node, mixer, node.meta["site"]))
    return found


def unique_name(name: str, taken: Container[str]) -> str:
    """The name of a site, with a number behind it if another has that name."""
    candidates = itertools.chain([name], (f"{name}[{number}]" for number in itertools.count(1)))
    return next(one for one in candidates if one not in taken)


def named_nodes(graph: fx.Graph) -> dict[str, fx.Node]:
    """The nodes of a graph by name."""
    return {node.name: node for node in graph.nodes}


def lengths_of(site: Site) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """T and S: how many queries and keys a site has."""
    query, key = site.operand("query"), site.operand("key")
    assert query is not None
    assert key is not None
    return query.meta["val"].shape[2], key.meta["val"].shape[2]


def same_length(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    """Whether two lengths are one, in symbols as they were traced.

    Inputs' first dimensions count as one batch where the example had them equal. In a (T, B, C) model they are
    lengths, and those of queries and keys stay two.
    """
    if not isinstance(first, torch.SymInt) or not isinstance(second, torch.SymInt):
        return not isinstance(first, torch.SymInt) and not isinstance(second, torch.SymInt) and first == second
    return bool(first.node.expr == second.node.expr)
