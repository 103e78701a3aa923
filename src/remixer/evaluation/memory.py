"""By how much a call grows what this process holds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch


def grown_bytes(call: Callable[[], object], device: torch.device | None = None) -> int | None:
    """By how many bytes a call grows this process at most, beyond what it holds before.

    On a CUDA device that is what torch's allocator hands out there. On the CPU it is the kernel's mark of the most
    memory that the process had (VmHWM in Linux's /proc), which is set back before; memory that was freed but not given
    back is given back first, so that the call can't hide in it. Nothing else may run in this process meanwhile.

    Returns:
        None where neither can be read: off Linux, and where the kernel doesn't let a process set the mark back.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    mark = Path("/proc/self/clear_refs")
    if not mark.exists():
        return None
    _give_back()
    try:
        mark.write_text("5", encoding="utf-8")  # the most so far is forgotten
    except OSError:
        return None
    held = _held("VmRSS")
    call()
    return max(0, _held("VmHWM") - held)


def _held(field: str) -> int:
    """Bytes that this process holds now, or held at most; not those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
