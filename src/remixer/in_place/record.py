"""What a model with mixers inside knows of them, in its config, as JSON can hold it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from remixer.mixers import AttentionSpec, Mixer, get

NAME = "remixer"  # of the attention, for transformers


def configs_of(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Every module's configs of transformers: the module, the attribute, the config."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if hasattr(value, "_attn_implementation_internal")
    ]


def entry_of(mixer: Mixer) -> dict[str, Any]:
    """A mixer's attention and options."""
    spec = asdict(mixer.spec)
    return {"spec": {**spec, "dtype": str(mixer.spec.dtype).removeprefix("torch.")}, "config": mixer.config.to_dict()}


def mixer_from(entry: dict[str, Any]) -> Mixer:
    """A mixer of these options for that attention, its weights new.

    Raises:
        UnknownMixerError: no mixer has this name.
    """
    spec, config = dict(entry["spec"]), dict(entry["config"])
    spec |= {"dtype": getattr(torch, spec["dtype"]), "window": tuple(spec["window"])}
    kind = get(config.pop("mixer"))
    return kind.from_attention(AttentionSpec(**spec), kind.Config(**config))
