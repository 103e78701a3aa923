"""Where a program is cut into stages: balance first, then as few activations as that leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import networkx as nx
from torch import Tensor, fx, nn

from remixer.passes.errors import StageError
from remixer.passes.stage_loads import sizes_for, weights_at
from remixer.rewrite.effects import dependencies, storages_of, writes, written
from remixer.rewrite.program import Program, bytes_at

FIRST, LAST = "first", "last"  # what is before a cut, and what is behind it


class Values:
    """Which values of a program stages compute, and which are made of inputs, or of weights, alone.

    Args:
        program: whose graph no longer changes.

    Attributes:
        wide: the nodes that are in one stage each, in the graph's order.
    """

    def __init__(self, program: Program) -> None:
        self._needs = dependencies(program.graph)
        inputs: set[fx.Node] = set(program.graph.find_nodes(op="placeholder"))
        trained: set[fx.Node] = set()
        self.wide: list[fx.Node] = []
        everywhere: set[fx.Node] = set(inputs)
        for node in program.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            before = set(self._needs.pred[node])
            if before & inputs:
                inputs.add(node)
            if before & trained or any(isinstance(each, nn.Parameter) for each in _held(program, node)):
                trained.add(node)
            if node.op == "call_module" or before - everywhere or node in inputs & trained:
                self.wide.append(node)
            else:
                everywhere.add(node)
        self._everywhere = everywhere
        self._bound = _written_together(program.graph)

    def readers(self, node: fx.Node) -> Iterable[fx.Node]:
        """The nodes that need a node's value, or what it writes."""
        found: Iterable[fx.Node] = self._needs.succ[node]
        return found

    def bound_to(self, node: fx.Node) -> set[fx.Node]:
        """The nodes that have to be in the same stage, since one of them changes what the others read."""
        return {other for group in self._bound if node in group for other in group & set(self.wide)}

    def recomputed_for(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """What each stage that has these nodes computes besides them."""
        found: set[fx.Node] = set()
        left = [*nodes]
        while left:
            more = set(self._needs.pred[left.pop()]) & self._everywhere - found
            found |= more
            left += more
        return {node for node in found if node.op != "placeholder"}

    def crossing(self, place: dict[fx.Node, int], stage: int) -> list[fx.Node]:
        """What is sent from this stage to the next one."""
        return [node for node in self.wide if place[node] <= stage and any(place[user] > stage for user in node.users)]


def _written_together(graph: fx.Graph) -> list[set[fx.Node]]:
    """For each node that writes: all that share the storage, and all that read it."""
    found = []
    for write in graph.nodes:
        if write.op == "call_function" and writes(write):
            changed = {storage for operand in written(write) for storage in storages_of(operand)}
            members = {node for node in graph.nodes if storages_of(node) & changed}
            found.append(members | {user for member in members for user in member.users})
    return found


def _held(program: Program, node: fx.Node) -> list[Tensor]:
    return weights_at(program.graph_module, node) if node.op == "get_attr" else []


class Cutting:
    """The stage of each node.

    Args:
        program: the program.
        values: of it.
        flops: of each node.
        tokens: how long sequences are expected to be.
        memory: how much of the load is weights.
        slack: how far from even a cut may be, in parts of a stage.
    """

    def __init__(
        self, program: Program, values: Values, flops: dict[fx.Node, int], tokens: int, memory: float, slack: float
    ) -> None:
        self.program, self.values, self.slack = program, values, slack
        self.sizes = sizes_for(program, 1, tokens)
        held = self._weights()
        work, bytes_ = sum(flops.get(node, 0) for node in values.wide) or 1, sum(held.values()) or 1
        loads = [(1 - memory) * flops.get(node, 0) / work + memory * held.get(node, 0) / bytes_ for node in values.wide]
        ends = list(itertools.accumulate(loads))
        total = ends[-1] if ends else 1.0
        self.ends = [end / (total or 1.0) for end in ends]

    def places(self, stages: int) -> dict[fx.Node, int]:
        """The stage of each node that is in one; the output's is the last.

        Raises:
            StageError: there are too few nodes, or what would cross can't be sent.
        """
        place = dict.fromkeys(self.values.wide, stages - 1)
        place[self.program.graph.output_node()] = stages - 1
        earlier: set[fx.Node] = set()
        for cut in range(1, stages):
            before = self._before(cut / stages, self.slack / stages, earlier)
            for node in before - earlier:
                place[node] = cut - 1
            earlier = before
        for stage in range(stages):
            if not any(place[node] == stage for node in self.values.wide):
                raise StageError(
                    f"cannot split into {stages} stages: number {stage} would have nothing to do. Ask for fewer stages"
                )
        return place

    def _weights(self) -> dict[fx.Node, float]:
        """Bytes of weights by the node that needs them; where several do, each has a share."""
        users: dict[fx.Node, list[fx.Node]] = {}
        found: dict[fx.Node, float] = {}
        for node in self.values.wide:
            found[node] = sum(each.nbytes for each in weights_at(self.program.graph_module, node))
            for held in self.values.recomputed_for([node]):
                if held.op == "get_attr":
                    users.setdefault(held, []).append(node)
        for held, nodes in users.items():
            size = sum(each.nbytes for each in weights_at(self.program.graph_module, held))
            for node in nodes:
                found[node] += size / len(nodes)
        return found

    def _before(self, share: float, slack: float, earlier: set[fx.Node]) -> set[fx.Node]:
        """The nodes that stand before a cut which has about this share of the load before it."""
        label: dict[fx.Node, object] = {self.program.graph.output_node(): LAST}
        start = 0.0
        for node, end in zip(self.values.wide, self.ends, strict=True):
            fits_first, fits_last = end <= share + slack, start >= share - slack
            if node in earlier or (fits_first and not fits_last):
                label[node] = FIRST
            elif fits_last and not fits_first:
                label[node] = LAST
            elif not fits_first:  # one that is larger than the window: the cut is at its nearer end
                label[node] = FIRST if end - share < share - start else LAST
            else:
                label[node] = node
            start = end
        network = nx.DiGraph()
        network.add_nodes_from((FIRST, LAST))
        middle = (share - slack, share + slack)
        for node, end in zip(self.values.wide, self.ends, strict=True):
            self._connect(network, node, label, abs(end - share) / (middle[1] - middle[0]))
        try:
            _, (before, _) = nx.minimum_cut(network, FIRST, LAST)
        except nx.NetworkXUnbounded as error:
            raise StageError(
                f"cannot split into stages at {share:.0%} of the work: what would cross there, integers or several "
                "values in one, can't be sent. Ask for another number of stages"
            ) from error
        return {node for node in self.values.wide if label[node] == FIRST or node in before}

    def _connect(self, network: nx.DiGraph, node: fx.Node, label: dict[fx.Node, object], distance: float) -> None:
        """A value costs once, however many read it; who reads it stands where it is, or behind."""
        me, out = label[node], ("value of", node)
        readers = {label[user] for user in self.values.readers(node)}
        for reader in readers - {me}:
            network.add_edge(reader, me)
        if me != LAST and readers - {FIRST}:
            size = self._size(node)
            if size is None:
                network.add_edge(me, out)
            else:
                network.add_edge(me, out, capacity=size * (1.0 + 0.01 * min(distance, 1.0)))  # of equals, the evenest
            network.add_edges_from((out, reader) for reader in readers)
        for other in self.values.bound_to(node):
            network.add_edges_from([(me, label[other]), (label[other], me)])

    def _size(self, node: fx.Node) -> int | None:
        """Bytes of a value; None if it can't be sent."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        return bytes_at(node, self.sizes)
