"""`from_pretrained`: reads a model that was saved with mixers inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from remixer.in_place.errors import InPlaceError
from remixer.in_place.placing import place
from remixer.in_place.record import mixer_from
from remixer.mixers import Mixer


def from_pretrained(kind: Any, folder: str | os.PathLike[str], **given: Any) -> Any:
    """A model of transformers that was saved with mixers inside, with them and their weights.

    Args:
        kind: the class to read it by, such as AutoModelForCausalLM or GPT2LMHeadModel.
        folder: that its `save_pretrained` wrote.
        given: further arguments of the class's `from_pretrained`.

    Returns:
        The model, as `remix(..., in_place=True)` gave it.

    Raises:
        InPlaceError: no model with mixers inside was saved there, or weights of its mixers are missing.
        UnknownMixerError: no mixer of some name is registered.
    """
    folder = Path(folder)
    record = _record(folder)
    mixers = {path: mixer_from(entry) for path, entry in record["mixers"].items()}
    weights = _weights(folder, tuple(f"{path}.mixer." for path in mixers))
    for path, mixer in mixers.items():
        _fill(path, mixer, weights)
    model = kind.from_pretrained(folder, attn_implementation=record["form"], **given)
    for path, mixer in mixers.items():
        near = next(model.get_submodule(path).parameters(), None)
        if near is not None:
            mixer.to(near.device, near.dtype)
    place(model, mixers, record["form"], record["masks"], None)
    return model


def _record(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise InPlaceError(f"{folder} has no config.json: give the folder that save_pretrained wrote")
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("remixer", {})
    if "mixers" not in record:
        raise InPlaceError(f"the model in {folder} was saved without mixers inside: its own from_pretrained reads it")
    return record


def _weights(folder: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """All weights in a folder whose names begin so."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefixes)}  # noqa: SIM118
    return found


def _fill(path: str, mixer: Mixer, weights: dict[str, torch.Tensor]) -> None:
    own = {name: weights.get(f"{path}.mixer.{name}") for name in mixer.state_dict()}
    missing = [name for name, weight in own.items() if weight is None]
    if missing:
        raise InPlaceError(f"the weights of the mixer at {path} are not in the folder: {', '.join(missing)}")
    mixer.load_state_dict({name: weight for name, weight in own.items() if weight is not None})
