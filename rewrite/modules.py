"""The tree of modules that holds a graph's parameters, buffers and submodules."""

from __future__ import annotations

from torch import nn


def add_module(root: nn.Module, path: str, module: nn.Module) -> str:
    """Add a submodule under a dotted path, or that path with the first free number behind it.

    Returns:
        The path it got.
    """
    *owners, leaf = path.split(".")
    owner = root
    for name in owners:
        if not isinstance(getattr(owner, name, None), nn.Module):
            owner.add_module(name, nn.Module())
        owner = getattr(owner, name)
    free, number = leaf, 0
    while hasattr(owner, free):
        number += 1
        free = f"{leaf}_{number}"
    owner.add_module(free, module)
    return ".".join([*owners, free])


def keep_persistence(old: nn.Module, new: nn.Module) -> None:
    """Mark the buffers of `new` non-persistent that are so in `old`; copying an attribute forgets it."""
    transient = {
        f"{path}.{name}" if path else name
        for path, module in old.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for path, module in new.named_modules():
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) in transient:
                module._non_persistent_buffers_set.add(name)
