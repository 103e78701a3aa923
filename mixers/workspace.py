"""Memory that is used again and again: on a CPU, the first touch of fresh memory costs more than the arithmetic."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor


class Workspace(threading.local):
    """Buffers by name, one of each per thread, which grow up to a limit and are then kept.

    What is taken is overwritten by the next one who takes the same name in this thread.
    """

    limit = 2**21  # entries; more than that outgrows the caches, where keeping it gains nothing

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised CPU tensor of this shape."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # else it could not be written to outside of inference mode
                buffer = torch.empty(size, dtype=dtype)
            if size <= self.limit:
                self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)


workspace = Workspace()
