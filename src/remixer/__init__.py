"""remixer: a compiler for attention models.

It captures a pretrained Transformer as a torch.fx graph, recognises every attention in it, and replaces
the ones you choose by an efficient token mixer.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remixer.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What `remixer.public` has, torch and all, when it is first asked for: the help of a command needs none of it."""
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    public = importlib.import_module("remixer.public")
    if not hasattr(public, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(public, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
