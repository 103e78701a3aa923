"""How far what a file gives is from what torch gives, some numbers at a time: outputs may be the largest of tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from remixer.mixers.precision import at_least_float32

PIECE = 2**18  # how many numbers are compared at once
LARGE = 2**20  # bytes of a tensor that is worth a file


class InFile:
    """A float32 tensor that waits in a file, of which some numbers are read at a time.

    Args:
        tensor: to write.
        folder: of the file.
    """

    def __init__(self, tensor: Tensor, folder: Path) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            self._path = Path(file.name)
            tensor.detach().cpu().numpy().tofile(file)

    def __getitem__(self, numbers: slice) -> Tensor:
        """Those numbers of it, in one dimension."""
        size = torch.float32.itemsize
        with self._path.open("rb") as file:
            file.seek(size * numbers.start)
            read = bytearray(file.read(size * (numbers.stop - numbers.start)))
        return torch.frombuffer(read, dtype=torch.float32)


def set_aside(tensors: Sequence[Tensor], folder: Path) -> list[Tensor | InFile]:
    """The same tensors, large ones in files, which leaves the memory to what they are compared with."""
    return [
        InFile(tensor, folder) if tensor.dtype == torch.float32 and tensor.nbytes > LARGE else tensor
        for tensor in tensors
    ]


def largest_difference(got: Tensor, want: Tensor | InFile, exist: Tensor | None = None) -> float:
    """Over the largest number that is wanted (1 at least); inf for other shapes, and for other whole numbers.

    Args:
        got: any shape.
        want: the same shape.
        exist: (B, T) bool, which tokens count if the values are by token, or None for all.
    """
    if got.shape != want.shape:
        return float("inf")
    if not want.dtype.is_floating_point:
        return 0.0 if all(torch.equal(a.to(b.dtype), b) for a, b in _pieces(got, want, exist)) else float("inf")
    dtype = at_least_float32(want.dtype)
    scale, largest = 1.0, torch.zeros((), dtype=dtype, device=got.device)
    for a, b in _pieces(got, want, exist):
        scale = max(scale, float(b.abs().max()))
        torch.maximum(largest, (a.to(dtype) - b.to(dtype)).abs_().max(), out=largest)  # which keeps a NaN
    return float(largest) / scale


def where_they_exist(got: Tensor, want: Tensor, exist: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of two values by token those whose tokens exist, (B, T) bool; other values as they are."""
    if exist is None or got.shape != want.shape or not _by_token(got, exist):
        return got, want
    return got[exist], want[exist]


def _by_token(value: Tensor, exist: Tensor) -> bool:
    return value.shape[:2] == exist.shape


def _pieces(got: Tensor, want: Tensor | InFile, exist: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one shape side by side, whole tokens at a time where only some count."""
    chosen = exist.flatten() if exist is not None and _by_token(got, exist) else None
    width = 1 if chosen is None else got.shape[2:].numel()
    flat = got.reshape(-1)
    want = want.reshape(-1) if isinstance(want, Tensor) else want
    step = width * max(1, PIECE // max(1, width))
    for start in range(0, flat.numel(), max(1, step)):
        numbers = slice(start, min(start + step, flat.numel()))
        a, b = flat[numbers], want[numbers]
        if chosen is not None:
            there = chosen[start // width : numbers.stop // width]
            a, b = a.view(-1, width)[there], b.view(-1, width)[there]
        if a.numel():
            yield a, b
