"""Tensors in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from remixer.export.typed import TypedError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file, each as it is laid out in memory of its own.

    Raises:
        TypedError: one has a dtype that these files don't have.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place in held or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # a view of something larger, or of what is written under another name
        held.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    try:
        save_file(ready, path)
    except (SafetensorError, KeyError, ValueError) as error:
        dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in ready.values()}))
        raise TypedError(f"tensors of {dtypes} can't be written: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        TypedError: it is none of safetensors, or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise TypedError(f"this is no file of safetensors: {error}") from error


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if one is other:
        return True
    alike = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return alike and torch.equal(one.detach(), other.detach())
