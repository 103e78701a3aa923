"""Running a mask's slice of the graph on chosen lengths and paddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from remixer.passes.trial_sizes import (
    NotTriedError,
    Size,
    TooLongError,
    longer_trial,
    padding_pattern,
    sizes_of,
    trial_sizes,
)
from remixer.rewrite.program import Program, expression, shape_of
from remixer.rewrite.slices import Slicer, evaluate


@dataclass(frozen=True)
class Trial:
    """One run of a mask: its value, and the padding that went in.

    Attributes:
        mask: (B or 1, H or 1, T or 1, S or 1).
        existing: (B, S) bool, which keys existed, or None where the mask reads no padding.
        queries: T.
        keys: S.
    """

    mask: Tensor
    existing: Tensor | None
    queries: int
    keys: int


@dataclass(frozen=True)
class Padding:
    """A node that may hold a mask's padding, and the value that means that a key exists."""

    node: fx.Node
    exists: bool


def padding_candidates(slicer: Slicer, mask: fx.Node, lengths: tuple[Size, Size]) -> list[fx.Node]:
    """Nodes of a mask's slice that may be its padding: two dimensions, a batch and as many as there are keys.

    Only what is computed from the values of inputs: positions that are counted out are what they are. Booleans
    come first, then the others, each in the graph's order.
    """
    queries, keys = (expression(size) for size in lengths)
    tokens = queries.free_symbols | keys.free_symbols
    nodes = [
        node
        for node in slicer.between([mask], [])
        if any(other.op == "placeholder" for other in slicer.between([node], []))
        and len(shape := shape_of(node) or ()) == 2
        and shape[1] == keys
        and not shape[0].free_symbols & tokens
    ]
    return sorted(nodes, key=lambda node: (node.meta["val"].dtype != torch.bool, slicer.order(node)))


class MaskRunner:
    """Runs one mask of a program.

    Parameters are replaced by random numbers: tables that start at zero would look like no bias.

    Args:
        program: that the mask is from.
        slicer: of the program.
        mask: the mask's node.
        lengths: T and S of the site.
    """

    def __init__(self, program: Program, slicer: Slicer, mask: fx.Node, lengths: tuple[Size, Size]) -> None:
        self.program = program
        self.slicer = slicer
        self.mask = mask
        self.lengths = lengths
        self.parameters = random_parameters(program, slicer, [mask])
        self._limit: tuple[int, int] | None = None  # a length that can be run and the next, that can't

    def trials(
        self,
        padding: Padding | None,
        *,
        longest: bool = True,
        values: Mapping[fx.Node, Tensor] | None = None,
        widen: bool = False,
    ) -> Iterator[Trial]:
        """The mask's value on several lengths, with no padding, right, left, random, and again none.

        Args:
            padding: what to feed, or None.
            longest: try a length beyond any window that the mask may have, too.
            values: of nodes that the mask is computed from.
            widen: compute in float32 what the graph computes in half precision.

        Raises:
            NotTriedError: the mask depends on the values of another input, or can't be run.
        """
        for index, sizes in enumerate(trial_sizes(self.program, self.lengths)):
            existing = None
            if padding is not None:
                existing = padding_pattern(index, *self.shape(padding.node, sizes))
            yield self.trial(sizes, padding, existing, values=values, widen=widen)
        tokens = longer_trial(self.program, self.slicer, self.mask, self.lengths) if longest else None
        if tokens is not None:
            yield self.long_trial(tokens, padding, values=values, widen=widen)

    def long_trial(
        self,
        tokens: int,
        padding: Padding | None = None,
        *,
        values: Mapping[fx.Node, Tensor] | None = None,
        widen: bool = False,
    ) -> Trial:
        """The mask's value where all keys exist, at least so many, or as many as the model can take.

        A mask that fails beyond some length, at the end of a table, makes its model fail there: nothing is seen
        that is farther apart.
        """

        def run(length: int) -> Trial:
            sizes = sizes_of(self.program, 1, length, self.lengths)
            existing = None if padding is None else torch.ones(self.shape(padding.node, sizes), dtype=torch.bool)
            return self.trial(sizes, padding, existing, values=values, widen=widen)

        runs, fails = self._limit or (2, tokens + 1)
        if tokens < fails:
            try:
                return run(tokens)
            except TooLongError:
                fails = tokens
        while fails - runs > 1:
            middle = (runs + fails) // 2
            try:
                run(middle)
                runs = middle
            except TooLongError:
                fails = middle
        self._limit = (runs, fails)
        return run(runs)

    def shape(self, node: fx.Node, sizes: Mapping[sympy.Symbol, int]) -> list[int]:
        """The shape of a node at these sizes.

        Raises:
            NotTriedError: it depends on other symbols.
        """
        try:
            return [evaluate(size, sizes) for size in node.meta["val"].shape]
        except KeyError as error:
            raise NotTriedError(str(error.args[0])) from error

    def trial(
        self,
        sizes: Mapping[sympy.Symbol, int],
        padding: Padding | None = None,
        existing: Tensor | None = None,
        *,
        fed: Tensor | None = None,
        values: Mapping[fx.Node, Tensor] | None = None,
        widen: bool = False,
    ) -> Trial:
        """The mask's value at some sizes.

        Args:
            sizes: a value for each symbol.
            padding: what to feed, or None.
            existing: which keys exist.
            fed: what the padding's node gives, if something else than what says so.
            values: of nodes that the mask is computed from.
            widen: compute in float32 what the graph computes in half precision.

        Raises:
            NotTriedError: the mask depends on the values of another input, or can't be run.
        """
        queries, keys = (evaluate(size, sizes) for size in self.lengths)
        feeds = dict(values or {})
        if padding is not None and existing is not None:
            given = (existing if padding.exists else ~existing) if fed is None else fed
            feeds[padding.node] = given.to(padding.node.meta["val"].dtype)
        try:
            value = self.slicer.run(self.mask, feeds, sizes, self.parameters, widen=widen)
        except KeyError as error:
            told = str(error.args[0])
            if told.startswith("the slice depends on the values"):
                told = told.replace("the slice", "its mask") + ", and not only on which tokens exist"
            raise NotTriedError(told) from error
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise TooLongError(f"the mask can't be run at {queries} x {keys}: {told}") from error
        if not isinstance(value, Tensor) or value.dim() > 4:
            raise NotTriedError("the mask is no tensor of up to four dimensions")
        while value.dim() < 4:
            value = value[None]
        return Trial(value, existing, queries, keys)


def random_parameters(program: Program, slicer: Slicer, masks: Iterable[fx.Node]) -> Mapping[str, Tensor]:
    """Random numbers of both signs in place of the parameters that masks are computed from, by name."""
    generator = torch.Generator().manual_seed(0)
    named = dict(program.graph_module.named_parameters(remove_duplicate=False))
    return {
        name: torch.randn(named[name].shape, generator=generator).to(named[name].dtype)
        for node in slicer.between(masks, [])
        if node.op == "get_attr" and (name := str(node.target)) in named
    }
