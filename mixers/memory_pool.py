"""Memory of large tensors that goes from one to the next, within a run of a model and between calls of a mixer.

The C library gives the memory of a large tensor back to the system with the tensor, and to touch a page of fresh memory
costs an interrupt. Of a model that goes over a million tokens, each layer makes some tensors of gigabytes: a fourth of
its time went there; of a mixer that goes over 32,768 tokens, up to a third.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import mmap
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LARGE = 2**25  # bytes, the most that the C library keeps
HUGE_PAGE = 2**21
WORTH_HUGE_PAGES = 2**22
MADV_HUGEPAGE = 14  # in sys/mman.h of Linux
KEPT = 4  # memories that nobody uses


class MemoryPool:
    """Memory of tensors that nobody holds any more, for those that come later."""

    def __init__(self) -> None:
        self.free: list[mmap.mmap] = []
        self.open = True

    def close(self) -> None:
        """Give back what is free now, and the rest with the tensors that are left, which keep theirs until then."""
        self.open = False
        self.free.clear()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised CPU tensor, whose memory comes back when no tensor is left in it."""
        entries = math.prod(shape)
        size = entries * dtype.itemsize
        memory = self._taken(size) or self._fresh(size)
        loan = (ctypes.c_byte * size).from_buffer(memory)  # the tensor's storage holds it, which all its views hold
        weakref.finalize(loan, self._take_back, memory).atexit = False
        return torch.frombuffer(loan, dtype=dtype, count=entries).view(shape)

    def _taken(self, size: int) -> mmap.mmap | None:
        """The smallest of the free memories that this fits into, but for those that are more than twice as large."""
        best = min((each for each in self.free if size <= len(each) <= 2 * size), key=len, default=None)
        if best is not None:
            self.free.remove(best)
        return best

    def _fresh(self, size: int) -> mmap.mmap:
        """Memory that nobody has touched, of this process alone."""
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _take_back(self, memory: mmap.mmap) -> None:
        """What a tensor had that is gone."""
        if self.open:
            self.free.append(memory)


class KeptMemory(MemoryPool):
    """A pool that outlasts calls, on Linux: the system may have what is free whenever it needs memory.

    In huge pages, which are marked as free in no time and need no interrupt when they are used again. What the last
    tensors to go have left is kept.
    """

    def _fresh(self, size: int) -> mmap.mmap:
        memory = super()._fresh(size)
        with contextlib.suppress(OSError):  # a system without huge pages
            memory.madvise(MADV_HUGEPAGE)
        return memory

    def _take_back(self, memory: mmap.mmap) -> None:
        try:
            memory.madvise(mmap.MADV_FREE)
        except OSError:  # a system that can't take it
            return
        super()._take_back(memory)
        del self.free[:-KEPT]


class _Current(threading.local):
    pool: MemoryPool | None = None

    def __init__(self) -> None:
        self.kept = KeptMemory() if hasattr(mmap, "MADV_FREE") and sys.platform == "linux" else None


_current = _Current()


@contextlib.contextmanager
def pooled_memory() -> Iterator[MemoryPool]:
    """What `empty` gives in this thread comes from one pool, which ends with the outermost of these contexts.

    Tensors that are left by then keep their memory.
    """
    if _current.pool is not None:
        yield _current.pool
        return
    _current.pool = pool = MemoryPool()
    try:
        yield pool
    finally:
        _current.pool = None
        pool.close()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor; a large one is of the pool of the run, or of memory that was kept."""
    pool = _current.pool or _current.kept
    if pool is None or math.prod(shape) * dtype.itemsize < LARGE:
        return in_huge_pages(torch.empty(shape, dtype=dtype, device="cpu"))
    return pool.empty(shape, dtype)


def in_huge_pages(fresh: Tensor) -> Tensor:
    """Ask Linux for pages of 2 MiB under a large tensor that nobody has touched.

    Where memory was used before, the first touch takes less than half of the time; in a virtual machine that has to get
    it from its host, three times as long, which is why the pool of a run, that touches memory once, has small pages.
    """
    madvise = _madvise()
    size = fresh.numel() * fresh.element_size()
    if madvise is not None and size >= WORTH_HUGE_PAGES:
        first, last = -(-fresh.data_ptr() // HUGE_PAGE), (fresh.data_ptr() + size) // HUGE_PAGE
        start, stop = first * HUGE_PAGE, last * HUGE_PAGE
        madvise(start, stop - start, MADV_HUGEPAGE)  # a wish: what it returns is no matter
    return fresh


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    made: Callable[[int, int, int], int] = found
    return made
