"""The tree of modules that holds a graph's parameters, buffers and submodules."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from remixer.rewrite.graphs import copied


def add_module(root: nn.Module, path: str, module: nn.Module) -> str:
    """Add a submodule under a dotted path, or that path with the first free number behind it.

    Returns:
        The path it got.
    """
    path, _, leaf = path.rpartition(".")
    owner = _made(root, path)
    free, number = leaf, 0
    while hasattr(owner, free):
        number += 1
        free = f"{leaf}_{number}"
    owner.add_module(free, module)
    return f"{path}.{free}" if path else free


def _made(root: nn.Module, path: str) -> nn.Module:
    """The submodule under a dotted path, made of empty modules as far as it is missing."""
    for name in filter(None, path.split(".")):
        if not isinstance(getattr(root, name, None), nn.Module):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    return root


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name; tied ones under every name."""
    parameters: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def keep_tied(before: Mapping[str, torch.Tensor], module: nn.Module) -> None:
    """Give weights that a module still has the other names back that they had before.

    A graph reads a tied weight by one of its names; a checkpoint has them all.
    """
    now = weights(module)
    held = {id(tensor) for tensor in now.values()}
    for name, tensor in before.items():
        if name in now or id(tensor) not in held:
            continue
        path, _, leaf = name.rpartition(".")
        owner = _made(module, path)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)


def keep_persistence(old: nn.Module, new: nn.Module) -> None:
    """Make up for what a GraphModule forgets of the module it is made from.

    These are the other names of tied weights, and which buffers are not persistent.
    """
    keep_tied(weights(old), new)
    transient = {
        f"{path}.{name}" if path else name
        for path, module in old.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for path, module in new.named_modules():
        for name in module._buffers:
            if (f"{path}.{name}" if path else name) in transient:
                module._non_persistent_buffers_set.add(name)


def flattened(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over the same weights and modules, each under a name of one part.

    Python looks names up part by part: of a decoder of 30 layers, that is a millisecond in every token.
    """
    graph = copied(module.graph)
    held: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            path = str(node.target)
            if path not in names:
                names[path] = f"held_{len(names)}"
                held[names[path]] = operator.attrgetter(path)(module)
            node.target = names[path]
    return fx.GraphModule(held, graph)
