"""Pass: let a program take longer inputs than its tables of positions and its buffers were made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import get_args

import sympy
import torch
from torch import Tensor, nn

from remixer.passes.base import Pass
from remixer.passes.errors import ExtendError
from remixer.passes.longer_tables import (
    Growth,
    How,
    NoLongerError,
    longer_buffer,
    longer_parameter,
    longer_waves,
)
from remixer.passes.position_rows import Positions
from remixer.passes.prove_longer import prove_longer
from remixer.passes.scale_rotary import Rotary, angles_of, scale_angles, scale_of
from remixer.passes.table_ends import End, ends_of, inputs_that_count, unexplained_limits
from remixer.rewrite.editor import Editor
from remixer.rewrite.errors import PassError
from remixer.rewrite.program import Program
from remixer.rewrite.sizes import letters_of

Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExtendPositions(Pass):
    """Make everything longer that ends before inputs of `max_length` do, and say so in `Program.extended`.

    Tables that are read by position, learned ones and those of sines and cosines, buffers of a fixed length, and the
    limits of the length's symbols. What ends is found by running the numbers of the rows that are read, at several
    lengths and paddings. Rows that no position reads, such as that of padding, stay what they are. The result was run
    beside the program before it at a length that both take, and once at a length that only the new one takes.

    Attributes:
        max_length: the largest size of each dimension of the inputs that counts tokens, frames or samples.
        how: what learned tables hold further on. "repeat" starts again with the first position, which leaves shorter
            inputs as they are; "interpolate" stretches the rows over all positions, which changes shorter inputs too
            and asks for training.
        rotary: also slow rotary embeddings down, by "interpolate" or "ntk"; see `scale_rotary.scale_of`.
        trained_length: the longest input of training, for `rotary`; by default where the program ends.

    Raises:
        ExtendError: an option is not one of these; something ends of which it can't be told how it goes on.
    """

    max_length: int
    how: How = "repeat"
    rotary: Rotary | None = None
    trained_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ExtendError(f"max_length must be 2 or more, got {self.max_length}")
        if self.how not in get_args(How):
            raise ExtendError(f"positions are extended by 'repeat' or 'interpolate', got {self.how!r}")
        if self.rotary is not None and self.rotary not in get_args(Rotary):
            raise ExtendError(f"rotary embeddings are scaled by 'interpolate' or 'ntk', got {self.rotary!r}")
        if self.trained_length is not None and not 2 <= self.trained_length < self.max_length:
            raise ExtendError(f"trained_length must lie between 2 and max_length, got {self.trained_length}")

    def requires(self, program: Program) -> None:
        """See Pass.requires.

        Raises:
            ExtendError: the program takes inputs of one length only.
        """
        if not program.length:
            self._refuse_one_length(program)

    def _refuse_one_length(self, program: Program) -> None:
        told = "; ".join(str(one) for one in program.static if one.dim) or "no input has a length"
        raise ExtendError(
            f"can't extend to {self.max_length:,}: inputs of one length only are taken ({told}). What to do: give an "
            "example in which that dimension is larger than 1, or a model that takes several lengths"
        )

    def run(self, editor: Editor) -> None:
        """See Pass.run."""
        before = editor.program.copy()
        ends, told, waves = self._extend(editor)
        positions = Positions(editor.program)
        self._refuse_limits(positions, ends)
        if not ends and any(one.dim and one.size < self.max_length for one in editor.program.static):
            self._refuse_one_length(editor.program)
        angles = angles_of(editor.program, positions)
        if self.rotary is not None and not angles and not waves:
            raise ExtendError(
                f"rotary={self.rotary!r}, but no sines and cosines of positions times frequencies were found in the "
                "graph. What to do: leave rotary out"
            )
        if self.rotary is not None and angles:
            scale_angles(editor, angles, self._scale(ends))
            told.append(self._of_angles(ends))
        told += _about_inputs(editor.program, positions)
        told += self._lift(editor, ends)
        if not ends and self.rotary is None:
            told.append(_nothing_ends(self.max_length, bool(angles)))
        editor.set_limits(editor.program.limits, told)
        same = self.rotary is None and (self.how == "repeat" or not any(_learned(before, end) for end in ends))
        prove_longer(before, editor.program, ends, self.max_length, same=same)

    def _extend(self, editor: Editor) -> tuple[list[End], list[str], bool]:
        """Everything that ends, made longer; what is said of it; and whether sines and cosines were among it.

        In rounds: the rows of one table may be numbers that a buffer holds, which has to be long enough first.
        """
        found: list[End] = []
        told: list[str] = []
        waves = False
        while ends := ends_of(Positions(editor.program), self.max_length):
            self._refuse_again(ends, found)
            found += ends
            longer = {name: self._longer(editor.program, name, each, found) for name, each in _by_name(ends).items()}
            for name, (tensor, sentence, wave) in longer.items():
                try:
                    editor.set_weight(name, tensor)
                except PassError as error:
                    raise ExtendError(f"can't extend {name} to {self.max_length:,}: {error}") from error
                told.append(sentence)
                waves |= wave
        return found, told, waves

    def _refuse_again(self, ends: list[End], found: list[End]) -> None:
        """Raise if what was made longer still ends: the graph cuts it off at a fixed size."""
        known = {(end.name, end.dim): end for end in found}
        for end in ends:
            if (before := known.get((end.name, end.dim))) is not None and end.needed <= before.needed:
                raise ExtendError(
                    f"can't extend to {self.max_length:,}: {end.place or 'the model'} reads {end.name} up to a fixed "
                    f"row only. What to do: ask for {before.reach:,} at most"
                )

    def _refuse_limits(self, positions: Positions, ends: list[End]) -> None:
        letters = {symbol.name: letter for symbol, letter in letters_of(positions.program).items()}
        for name, largest in unexplained_limits(positions, ends, self.max_length).items():
            raise ExtendError(
                f"can't extend to {self.max_length:,}: the model's own code allows {letters.get(name, name)} up to "
                f"{largest:,} only, and no table or buffer that is read by position ends there. What to do: lift that "
                "limit in the model, or ask for no more"
            )

    def _scale(self, ends: list[End]) -> Scale:
        if self.rotary is None:
            return torch.ones_like
        return scale_of(self.rotary, self.max_length / self._trained(ends))

    def _trained(self, ends: list[End]) -> int:
        """How long inputs were in training, as far as that is known."""
        if self.trained_length is not None:
            return self.trained_length
        if not ends:
            raise ExtendError(
                f"rotary={self.rotary!r} needs the longest input of training, which nothing in the graph tells. What "
                "to do: give it as trained_length"
            )
        return min(end.reach for end in ends)

    def _longer(self, program: Program, name: str, ends: list[End], found: list[End]) -> tuple[Tensor, str, bool]:
        """A longer parameter or buffer, what is said of it, and whether it holds sines and cosines."""
        old = attrgetter(name)(program.graph_module)
        growths = {end.dim: Growth(end.first, end.needed) for end in ends}
        shape = f"{tuple(old.shape)}"
        if len(ends) == 1:
            (end,) = ends
            wave = longer_waves(old, end.dim, growths[end.dim], self._scale(found))
            if wave is not None:
                slower = f", {self.rotary} by {self.max_length / self._trained(found):g}" if self.rotary else ""
                return wave, f"{name} {shape} to {tuple(wave.shape)}: sines and cosines by their formula{slower}", True
        if isinstance(old, nn.Parameter):
            new, word = self._learned(old, name, ends)
        else:
            try:
                new, word = longer_buffer(old, growths)
            except NoLongerError as error:
                place, reach = ends[0].place, min(end.reach for end in ends)
                raise ExtendError(
                    f"can't extend to {self.max_length:,}: the buffer {name} {shape}, which {place or 'the model'} "
                    f"reads by position, is enough for {reach:,}, and {error}. What to do: replace the attention that "
                    f"needs it, or ask for {reach:,} at most"
                ) from error
        return new, f"{name} {shape} to {tuple(new.shape)}: {word}", False

    def _learned(self, table: Tensor, name: str, ends: list[End]) -> tuple[Tensor, str]:
        if len(ends) > 1 or not ends[0].counted:
            raise ExtendError(
                f"can't extend to {self.max_length:,}: {ends[0].place or 'the model'} reads the learned table {name} "
                f"{tuple(table.shape)} by other numbers than those of one position after another. What to do: ask for "
                f"{min(end.reach for end in ends):,} at most"
            )
        (end,) = ends
        new = longer_parameter(table, end.dim, Growth(end.first, end.needed), self.how)
        rows = f"rows {end.first} to {end.size - 1}"
        if self.how == "repeat":
            return new, f"{rows} repeated"
        return new, f"{rows} stretched by interpolation, which changes what shorter inputs give"

    def _of_angles(self, ends: list[End]) -> str:
        trained = self._trained(ends)
        ratio = self.max_length / trained
        how = "positions divided by" if self.rotary == "interpolate" else "base enlarged, NTK-aware, for lengths times"
        return f"rotary angles: {how} {ratio:g} (trained up to {trained:,}), which changes what shorter inputs give"

    def _lift(self, editor: Editor, ends: list[End]) -> list[str]:
        """Let the length's symbols grow to the new length."""
        limits, letters = dict(editor.program.limits), letters_of(editor.program)
        told = []
        for symbol in sorted(frozenset[sympy.Symbol]().union(*(end.symbols for end in ends)), key=str):
            smallest, _ = limits.get(symbol, (2, None))
            before = min(end.reach for end in ends if symbol in end.symbols)
            limits[symbol] = (smallest, self.max_length)
            told.append(f"{letters.get(symbol, symbol)}: up to {before:,} before, up to {self.max_length:,} now")
        editor.set_limits(limits, ())
        return told


def _by_name(ends: list[End]) -> Mapping[str, list[End]]:
    found: dict[str, list[End]] = {}
    for end in ends:
        found.setdefault(end.name, []).append(end)
    return found


def _learned(program: Program, end: End) -> bool:
    return isinstance(attrgetter(end.name)(program.graph_module), nn.Parameter)


def _nothing_ends(max_length: int, rotary: bool) -> str:
    told = f"nothing: {max_length:,} is taken already, no table, buffer or limit ends before"
    return f"{told}; rotary angles go on beyond those of training unless they are scaled" if rotary else told


def _about_inputs(program: Program, positions: Positions) -> list[str]:
    """What is to be said of tables that are read by an input of positions."""
    told = []
    for table, name in inputs_that_count(positions):
        size = attrgetter(table)(program.graph_module).shape[0]
        told.append(
            f"{table} is read by the values of input {name!r}, which counts up in the example: it still holds {size:,} "
            "rows. Without that input in the example the model counts positions itself, and the table is extended"
        )
    return told
