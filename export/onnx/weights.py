"""One mixer in the place of another."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def with_weights_of(mixer: nn.Module, lowered: M) -> M:
    """A module with the weights and children of another, which are shared."""
    for name, parameter in mixer.named_parameters(recurse=False):
        setattr(lowered, name, parameter)
    for name, module in mixer.named_children():
        setattr(lowered, name, module)
    return lowered
