"""What any torch module may take, by the arguments of its forward and the first layers it has."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOST = 64  # candidates that are tried
_WIDTHS = ("d_model", "embed_dim", "hidden_size", "width")
_SIZES = ("image_size", "img_size")


def from_signature(model: nn.Module, batch: int, length: int) -> Iterator[Mapping[str, Tensor]]:
    """Inputs that the model may take, the likeliest first: all of one kind, then mixed.

    Args:
        model: any module.
        batch: rows.
        length: tokens.
    """
    names = [
        name
        for name, each in inspect.signature(model.forward).parameters.items()
        if each.default is inspect.Parameter.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    plain = _kinds(model, batch, length)
    masks = [torch.ones(batch, length, dtype=torch.bool), torch.ones(batch, length, dtype=torch.int64)]
    if not names or not plain:
        return
    choices = [masks if _is_mask(name) else plain for name in names]
    alike = (tuple(kind[min(index, len(kind) - 1)] for kind in choices) for index in range(len(plain)))
    for values in itertools.islice(itertools.chain(alike, itertools.product(*choices)), MOST):
        yield dict(zip(names, values, strict=True))


def _is_mask(name: str) -> bool:
    return "mask" in name or "padding" in name


def _kinds(model: nn.Module, batch: int, length: int) -> list[Tensor]:
    """What one input may be: token ids, images, sound, or states of some width; the first layer's kind first."""
    generator = torch.Generator().manual_seed(0)
    found: dict[Any, Tensor] = {}

    def add(*shape: int) -> None:
        found.setdefault(shape, torch.randn(shape, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            most = min(module.num_embeddings, 4096)
            found.setdefault("ids", torch.randint(0, most, (batch, length), generator=generator))
        elif isinstance(module, nn.Conv2d):
            add(batch, module.in_channels, *_image_size(model))
        elif isinstance(module, nn.Conv1d):
            add(batch, module.in_channels, 16 * length)
        for width in _widths(module):
            add(batch, length, width)
        if len(found) > 8:
            break
    return list(found.values())


def _widths(module: nn.Module) -> list[int]:
    """How wide the states may be that a module reads."""
    told: list[Any] = [getattr(module, name, None) for name in _WIDTHS]
    if isinstance(module, nn.Linear):
        told.append(module.in_features)
    if isinstance(module, nn.LayerNorm):
        told.append(module.normalized_shape[-1])
    return [width for width in told if isinstance(width, int) and width > 0]


def _image_size(model: nn.Module) -> tuple[int, int]:
    told: Any = getattr(model, "default_cfg", None)
    if isinstance(told, dict) and len(told.get("input_size", ())) == 3:
        return told["input_size"][1], told["input_size"][2]
    for module in model.modules():
        for size in (getattr(module, name, None) for name in _SIZES):
            if isinstance(size, int):
                return size, size
            if isinstance(size, (tuple, list)) and len(size) == 2:
                return size[0], size[1]
    return 224, 224
