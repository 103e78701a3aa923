"""Mixers are put inside a model of transformers, and taken out again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from remixer.in_place.errors import InPlaceError
from remixer.in_place.record import NAME, configs_of, entry_of
from remixer.mixers import Mixer
from remixer.report import Report

M = TypeVar("M", bound=nn.Module)


def place(model: Any, mixers: Mapping[str, Mixer], form: str, masks: list[str], report: Report | None) -> None:
    """Put mixers into a model's attention modules. Configs become the model's own copies.

    Args:
        model: of transformers.
        mixers: by the paths of attention modules; a softmax mixer stands for the model's own attention.
        form: of the model's own attention.
        masks: that it may ask for.
        report: to be kept with it.
    """
    from remixer.in_place.interface import InPlace  # needs transformers, which then knows the name

    memo: dict[int, Any] = {}
    for module, name, config in configs_of(model):
        setattr(module, name, copy.deepcopy(config, memo))
    rules = {"form": form, "masks": masks}
    for path, mixer in mixers.items():
        module = model.get_submodule(path)
        module.add_module("mixer", mixer.train(module.training))
        module.config.remixer = rules
        module.config._attn_implementation_internal = NAME
    model.config.remixer = {**rules, "mixers": {path: entry_of(mixer) for path, mixer in mixers.items()}}
    model.config.attn_implementation = NAME  # saved: who reads the model without its mixers is told
    model.remixed_in_place = InPlace(report)


def undo(model: M) -> M:
    """Take the mixers out of a model again that `remix(..., in_place=True)` put them into.

    The model's own attention is as it was before; what else was trained since stays.

    Args:
        model: of transformers.

    Returns:
        The same model.

    Raises:
        InPlaceError: there are none in it.
    """
    if not hasattr(model, "remixed_in_place"):
        raise InPlaceError(f"{type(model).__name__} has no mixers inside that remix(..., in_place=True) put there")
    own: Any = model.config
    form = own.remixer["form"]
    for module in model.modules():
        config = vars(module).get("config")
        if getattr(config, "_attn_implementation", None) == NAME and "mixer" in module._modules:
            del module.mixer
    for _, _, config in configs_of(model):
        if hasattr(config, "remixer"):
            del config.remixer
            config._attn_implementation_internal = form
    vars(own).pop("attn_implementation", None)
    del model.remixed_in_place
    return model


@contextlib.contextmanager
def weights_of(learned: nn.Module, model: nn.Module) -> Iterator[None]:
    """Give a model the weights that another form of it has learned; its own are back if anything is raised."""
    own = dict(model.named_parameters(remove_duplicate=False))
    before: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for name, weight in learned.named_parameters():
                if name in own and not torch.equal(own[name], weight):
                    before[name] = own[name].clone()
                    own[name].copy_(weight)
        yield
    except BaseException:
        with torch.no_grad():
            for name, mine in before.items():
                own[name].copy_(mine)
        raise
