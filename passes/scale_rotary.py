"""Rotary embeddings at more positions than a model was trained for: slower angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, fx

from remixer.passes.errors import ExtendError
from remixer.passes.position_rows import NotCountedError, Positions
from remixer.rewrite.editor import Editor
from remixer.rewrite.program import Program, shape_of
from remixer.rewrite.slices import evaluate

aten = torch.ops.aten
Rotary = Literal["interpolate", "ntk"]
_ANGLES = {aten.cos.default: 0, aten.sin.default: 0, aten.polar.default: 1}


def scale_of(rotary: Rotary, ratio: float) -> Callable[[Tensor], Tensor]:
    """From the frequencies of a rotary embedding to what to multiply them by.

    Args:
        rotary: "interpolate" divides all positions by the ratio (Chen et al. 2023, "Extending context window of large
            language models via position interpolation", arXiv 2306.15595). "ntk" makes the base of the frequencies
            ratio^(d / (d - 2)) times as large, which leaves the fastest as it is and divides the slowest by the ratio
            (NTK-aware scaling, bloc97 2023; formula in Peng et al. 2023, "YaRN", arXiv 2309.00071, section 3.1).
        ratio: of the new length to that of training.

    Returns:
        A function that raises ExtendError where "ntk" meets frequencies that are no geometric sequence.
    """

    def scale(frequencies: Tensor) -> Tensor:
        if rotary == "interpolate":
            return torch.full_like(frequencies, 1 / ratio)
        return _ntk(frequencies, ratio)

    return scale


def _ntk(frequencies: Tensor, ratio: float) -> Tensor:
    """ratio^(-2 k / (d - 2)) for the k-th of the d / 2 different frequencies, the fastest first."""
    _, place = torch.unique(_rounded(frequencies), return_inverse=True)
    different = frequencies.new_zeros(int(place.max()) + 1).scatter(0, place, frequencies).flip(0)
    place = len(different) - 1 - place
    if len(different) < 2:
        return torch.ones_like(frequencies)
    steps = different.log().diff()
    if bool(((steps - steps.mean()).abs() > 1e-3 * steps.mean().abs()).any()):
        raise ExtendError(
            "rotary='ntk' changes the base of a rotary embedding, but its frequencies are no geometric sequence: they "
            "may have been scaled before. What to do: rotary='interpolate', or the model without its own scaling"
        )
    return ratio ** (-place.to(frequencies.dtype) / (len(different) - 1))


def _rounded(frequencies: Tensor) -> Tensor:
    """Frequencies that differ by rounding only made the same."""
    return (frequencies.log() * 1e4).round()


def angles_of(program: Program, positions: Positions) -> dict[fx.Node, Tensor]:
    """Nodes of angles that are positions times frequencies, of which some node takes the sine or cosine.

    Both by structure and by running: at two lengths, row t has to be t times row 1.

    Returns:
        The frequencies of each, float64, in the shape of the angles without their rows: (D,).
    """
    found: dict[fx.Node, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in _ANGLES:
            angles = node.args[_ANGLES[node.target]]
            if isinstance(angles, fx.Node) and angles not in found:
                frequencies = _frequencies(program, positions, angles)
                if frequencies is not None:
                    found[angles] = frequencies
    return found


def _frequencies(program: Program, positions: Positions, angles: fx.Node) -> Tensor | None:
    """(D,) float64, or None if these are no positions times frequencies."""
    shape = shape_of(angles) or ()
    if len(shape) < 2 or not shape[-1].is_Integer:
        return None
    rows = [dim for dim, size in enumerate(shape[:-1]) if size.free_symbols & positions.lengths]
    if len(rows) != 1:
        return None
    found: Tensor | None = None
    for length in (9, 23):
        values = _at(program, positions, angles, length)
        if values is None:
            return None
        each = values.movedim(rows[0], -2).flatten(0, -3) if values.dim() > 2 else values[None]
        places = torch.arange(each.shape[1], dtype=torch.float64)[:, None]
        frequencies = each[0, 1]
        fits = torch.allclose(each, places * frequencies, rtol=1e-5, atol=1e-9)
        if not fits or bool((frequencies <= 0).any()):
            return None
        if found is not None and not torch.allclose(found, frequencies, rtol=1e-6):
            return None
        found = frequencies
    return found


def _at(program: Program, positions: Positions, angles: fx.Node, length: int) -> Tensor | None:
    """The angles at positions 0, 1, 2, ..., counted by the graph or given as an input."""
    needed = [node for node in positions.slicer.between([angles], []) if node.op == "placeholder"]
    sizes = positions.sizes(length)
    try:
        if positions.counted(angles):
            return positions.run(angles, length).to(torch.float64)
        if len(needed) != 1 or not _holds_whole_numbers(needed[0]):
            return None
        shape = [evaluate(size, sizes) for size in needed[0].meta["val"].shape]
        counted = torch.arange(shape[-1]).expand(shape).to(needed[0].meta["val"].dtype)
        with torch.no_grad():
            value: Tensor = positions.slicer.run(angles, {needed[0]: counted}, sizes)
        return value.to(torch.float64)
    except (NotCountedError, KeyError, RuntimeError, IndexError, TypeError):
        return None


def _holds_whole_numbers(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype is not torch.bool


def scale_angles(editor: Editor, angles: dict[fx.Node, Tensor], scale: Callable[[Tensor], Tensor]) -> None:
    """Multiply angles in front of their sines and cosines; the factors become buffers that aren't saved."""
    factors: dict[tuple[float, ...], str] = {}
    for node, frequencies in angles.items():
        factor = scale(frequencies)
        readers = [user for user in node.users if user.target in _ANGLES]
        first = min(readers)
        dtype = node.meta["val"].dtype
        if bool((factor == factor[0]).all()):
            slower = editor.call(aten.mul.Tensor, node, float(factor[0]), before=first)
        else:
            key = tuple(factor.tolist())
            if key not in factors:
                factors[key] = editor.add_buffer("rotary_scale", factor.to(dtype=dtype))
            held = editor.get(factors[key], before=first)
            slower = editor.call(aten.mul.Tensor, node, held, before=first)
        for reader in readers:
            editor.read(reader, node, slower)
