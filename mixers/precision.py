"""The precision of what must not be rounded to a model's dtype: positions, decays, transforms, counts."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32 for all lower precisions; unlike torch.promote_types, it leaves no trace in a graph."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unrounded(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off; entered only where there is something to switch off, exported graphs stay free of it."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()
