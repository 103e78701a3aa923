"""Memory that is used again and again: on a CPU, the first touch of fresh memory costs more than the arithmetic."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from remixer.mixers.memory_pool import empty


class Workspace(threading.local):
    """Buffers by name, one of each per thread, which grow up to a limit and are then kept.

    What is taken is overwritten by the next one who takes the same name in this thread.
    """

    limit = 2**22  # entries; more than that outgrows the caches, where keeping it gains nothing

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._zeros: dict[tuple[str, torch.dtype], tuple[Tensor, int]] = {}

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

    def take_zeros(self, name: str, shape: tuple[int, ...], used: int, dtype: torch.dtype) -> Tensor:
        """A CPU tensor of this shape, zero from column `used` on; only the columns before may be written to."""
        buffer, before = self._zeros.get((name, dtype), (None, 0))
        if buffer is None or buffer.shape[-1] != shape[-1] or buffer.numel() < math.prod(shape):
            rows = math.prod(shape[:-1])
            with torch.inference_mode(False):
                buffer, before = torch.zeros(rows, shape[-1], dtype=dtype), used
        elif used < before:
            buffer[:, used:before] = 0.0
        if buffer.numel() <= self.limit:
            self._zeros[name, dtype] = buffer, used
        return buffer[: math.prod(shape[:-1])].view(shape)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next call, as it does once a block of just under 32 MiB was freed.

    It otherwise gives back what it can after every call, and faulting it in again takes longer than a transform.
    Nothing is touched, so nothing is used up; elsewhere this does nothing.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def empty_like_tokens(like: Tensor, heads: int, size: int) -> Tensor:
    """A CPU tensor (B, heads, T, size) for what is mixed of (B, G, T, E), laid out as (B, T, heads, size).

    So a model that puts the heads of a token side by side copies nothing.
    """
    return empty((like.shape[0], like.shape[2], heads, size), like.dtype).transpose(1, 2)


keep_freed_memory()
workspace = Workspace()
