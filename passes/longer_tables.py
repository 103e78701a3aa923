"""What a table or buffer holds for positions beyond its end, where that follows from what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

How = Literal["repeat", "interpolate"]
_MOST_BYTES = 2**31  # of a buffer with an entry for each pair of positions


class NoLongerError(ValueError):
    """It can't be told what comes next; the message says why."""


@dataclass(frozen=True)
class Growth:
    """How far one dimension has to grow: rows from `first` on stand for positions, and `size` of them are wanted."""

    first: int
    size: int


def longer_parameter(table: Tensor, dim: int, growth: Growth, how: How) -> Tensor:
    """A learned table with more rows.

    Args:
        table: of any shape.
        dim: along which positions lie.
        growth: how far.
        how: "repeat" starts again with the first position; "interpolate" stretches the rows over all positions.

    Examples:
        >>> longer_parameter(torch.tensor([9.0, 1.0, 2.0]), 0, Growth(1, 6), "repeat")
        tensor([9., 1., 2., 1., 2., 1.])
    """
    special, rows = table.movedim(dim, 0).split([growth.first, table.shape[dim] - growth.first])
    wanted = growth.size - growth.first
    if how == "repeat":
        rows = rows[torch.arange(wanted, device=table.device) % len(rows)]
    else:
        flat = rows.flatten(1).T[None].to(torch.float64)
        stretched = F.interpolate(flat, size=wanted, mode="linear", align_corners=True)
        rows = stretched[0].T.reshape(wanted, *rows.shape[1:]).to(table.dtype)
    return torch.cat([special, rows]).movedim(0, dim).contiguous()


def longer_buffer(buffer: Tensor, growths: Mapping[int, Growth]) -> tuple[Tensor, str]:
    """A buffer that goes on as it began, and a word for what it holds.

    Raises:
        NoLongerError: it holds nothing that is known to go on, or it would take too much memory.
    """
    shape = [growths[dim].size if dim in growths else size for dim, size in enumerate(buffer.shape)]
    needed = buffer.element_size() * torch.Size(shape).numel()
    if len(growths) > 1 and needed > _MOST_BYTES:
        raise NoLongerError(f"with an entry for each pair of positions it would take {needed / 2**30:.1f} GiB")
    dims = sorted(growths)
    if bool((buffer == buffer.flatten()[0]).all()):
        return buffer.flatten()[0].expand(shape).clone(), "constant"
    if len(dims) == 1:
        return _counted_out(buffer, dims[0], shape)
    if len(dims) == 2:
        return _band(buffer, (dims[0], dims[1]), shape)
    raise NoLongerError(f"it is to grow along {len(dims)} dimensions")


def _counted_out(buffer: Tensor, dim: int, shape: list[int]) -> tuple[Tensor, str]:
    """Numbers that rise by the same step from row to row."""
    rows = buffer.movedim(dim, 0)
    steps = rows.diff(dim=0) if buffer.dtype is not torch.bool else rows[:0]
    if not len(steps) or not bool((steps == steps[0]).all()):
        raise NoLongerError("it holds neither a constant, nor numbers that rise by the same step")
    places = torch.arange(shape[dim], device=buffer.device).reshape(-1, *[1] * (rows.dim() - 1))
    longer = rows[0] + places.to(buffer.dtype) * steps[0]
    if not torch.equal(longer[: len(rows)], rows):  # steps that rounding makes look the same
        raise NoLongerError("it holds neither a constant, nor numbers that rise by the same step")
    return longer.movedim(0, dim).contiguous(), "counting"


def _band(buffer: Tensor, dims: tuple[int, int], shape: list[int]) -> tuple[Tensor, str]:
    """A matrix whose entries follow from the distance to its diagonal, with at most two changes along it.

    These are the masks of causal and of windowed attention.
    """
    matrix = buffer.movedim(dims, (-2, -1))
    height, width = matrix.shape[-2:]
    flat = matrix.reshape(-1, height, width)
    if not bool((flat == flat[0]).all()):
        raise NoLongerError("it holds matrices that differ")
    # The value at each distance from the diagonal: the first column upwards, then the first row.
    line = torch.cat([flat[0, :, 0].flip(0), flat[0, 0, 1:]])
    if int((line[1:] != line[:-1]).sum()) > 2:
        raise NoLongerError("it holds no band along its diagonal")

    def filled(rows: int, columns: int) -> Tensor:
        distance = torch.arange(columns, device=buffer.device) - torch.arange(rows, device=buffer.device)[:, None]
        return line[(distance + height - 1).clamp(0, len(line) - 1)]

    if not torch.equal(filled(height, width), flat[0]):
        raise NoLongerError("its entries don't follow from the distance to its diagonal")
    longer = filled(shape[dims[0]], shape[dims[1]])
    view = [shape[dim] if dim in dims else 1 for dim in range(buffer.dim())]
    return longer.reshape(view).expand(shape).contiguous(), "band"


@dataclass(frozen=True)
class Waves:
    """A table of sines and cosines of row times frequency, plus a phase.

    Attributes:
        sines: columns that hold sines.
        cosines: of each, the column with its cosine.
        frequencies: radians per row, float64.
        phases: radians at row 0, float64.
    """

    sines: Tensor
    cosines: Tensor
    frequencies: Tensor
    phases: Tensor

    def filled(self, rows: Tensor, columns: int, factor: Tensor | float = 1.0) -> Tensor:
        """(rows, columns) float64: the table at these rows, its frequencies times a factor."""
        angles = self.phases + rows.to(torch.float64)[:, None] * self.frequencies * factor
        table = torch.zeros(len(rows), columns, dtype=torch.float64, device=rows.device)
        table[:, self.sines] = angles.sin()
        table[:, self.cosines] = angles.cos()
        return table


def waves_of(table: Tensor, first: int = 0) -> Waves | None:
    """The sines and cosines that a table of (rows, columns) holds, from a row on, or None.

    Every entry has to be explained, up to the rounding of angles in the table's precision.
    """
    rows, columns = table.shape
    if not table.is_floating_point() or columns % 2 or rows - first < 3:
        return None
    values = table.detach().to(torch.float64)[first:]
    places = torch.arange(first, rows, device=table.device)
    # Angles in half precision would say nothing; tables are rounded to it from float32.
    precision = max(2.0**-23, torch.finfo(table.dtype).eps)
    allowed = 2.0**-22 * places.to(torch.float64)[:, None] + 4 * precision
    for sines, cosines in _layouts(columns, table.device):
        sine, cosine = values[:, sines], values[:, cosines]
        if bool(((sine.square() + cosine.square() - 1).abs() > 16 * precision).any()):
            continue
        waves = _fitted(torch.atan2(sine, cosine), places, sines, cosines)
        if bool(((waves.filled(places, columns) - values).abs() <= allowed).all()):
            return waves
    return None


def _layouts(columns: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Which columns may hold sines, and which their cosines: halves, or in turn."""
    every = torch.arange(columns, device=device)
    for one, other in ((every[: columns // 2], every[columns // 2 :]), (every[::2], every[1::2])):
        yield one, other
        yield other, one


def _fitted(angles: Tensor, places: Tensor, sines: Tensor, cosines: Tensor) -> Waves:
    """The line through angles that are known up to whole turns: slope and value at row 0, by least squares."""
    turn = 2 * torch.pi
    steps = (angles.diff(dim=0) + torch.pi).remainder(turn) - torch.pi
    straight = torch.cat([angles[:1], angles[:1] + steps.cumsum(0)])
    rows = places.to(torch.float64)
    middle = rows.mean()
    slope = ((rows - middle)[:, None] * straight).sum(0) / (rows - middle).square().sum()
    return Waves(sines, cosines, slope, straight.mean(0) - slope * middle)


def longer_waves(table: Tensor, dim: int, growth: Growth, scale: Callable[[Tensor], Tensor]) -> Tensor | None:
    """A table of sines and cosines that goes on by its formula, or None if it isn't one.

    Args:
        table: two dimensions that are more than 1: rows and columns.
        dim: of the rows.
        growth: how far.
        scale: from frequencies to what they are to be multiplied by.
    """
    wide = [at for at, size in enumerate(table.shape) if at != dim and size > 1]
    if len(wide) != 1:
        return None
    rows = table.movedim(dim, 0).reshape(table.shape[dim], -1)
    for first in dict.fromkeys((0, 1, 2, growth.first)):  # that of padding, and what comes before, may be zeros
        waves = waves_of(rows, first)
        if waves is not None:
            break
    else:
        return None
    places = torch.arange(growth.size, device=table.device)
    factor = scale(waves.frequencies)
    longer = waves.filled(places, rows.shape[1], factor).to(table.dtype)
    longer[:first] = rows[:first]
    if bool((factor == 1).all()):
        longer[: len(rows)] = rows
    shape = [growth.size if at == 0 else size for at, size in enumerate(table.movedim(dim, 0).shape)]
    return longer.reshape(shape).movedim(0, dim).contiguous()
