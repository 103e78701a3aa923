"""`from_pretrained`: reads a model that was saved with mixers inside."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from remixer.export.artifacts.modules import empty_mixer
from remixer.export.typed import TypedError, parsed, read_text, typed
from remixer.in_place.errors import InPlaceError
from remixer.in_place.placing import place
from remixer.in_place.record import Entry, Inside
from remixer.mixers import Mixer, MixerConfigError


def from_pretrained(kind: Any, folder: str | os.PathLike[str], **given: Any) -> Any:
    """A model of transformers that was saved with mixers inside, with them and their weights.

    Args:
        kind: the class to read it by, such as AutoModelForCausalLM or GPT2LMHeadModel.
        folder: that its `save_pretrained` wrote.
        given: further arguments of the class's `from_pretrained`.

    Returns:
        The model, as `remix(..., in_place=True)` gave it.

    Raises:
        InPlaceError: no model with mixers inside was saved there, or what the folder says of them can't be read, or
            weights of its mixers are missing.
        UnknownMixerError: no mixer of some name is registered.
    """
    folder = Path(folder)
    record = _record(folder)
    weights = _weights(folder, tuple(f"{path}.mixer." for path in record.mixers))
    mixers = {path: _filled(path, entry, weights) for path, entry in record.mixers.items()}
    model = kind.from_pretrained(folder, attn_implementation=record.form, **given)
    for path, mixer in mixers.items():
        near = next(model.get_submodule(path).parameters(), None)
        if near is not None:
            mixer.to(near.device, near.dtype)
    place(model, mixers, record.form, record.masks, None)
    return model


def _record(folder: Path) -> Inside:
    file = folder / "config.json"
    if not file.is_file():
        raise InPlaceError(f"{folder} has no config.json: give the folder that save_pretrained wrote")
    try:
        whole = parsed(read_text(file))
        found = whole.get("remixer") if isinstance(whole, dict) else None
        if not isinstance(found, dict) or "mixers" not in found:
            raise InPlaceError(
                f"the model in {folder} was saved without mixers inside: its own from_pretrained reads it"
            )
        record = typed(Inside, found, "remixer")
    except (OSError, TypedError, MixerConfigError) as error:
        raise InPlaceError(f"can't read {file}: {error}") from error
    if not re.fullmatch(r"[a-z0-9_]+", record.form):  # transformers would fetch and run code from a hub for others
        raise InPlaceError(f"can't read {file}: there is no form of attention {record.form!r:.80}")
    return record


def _weights(folder: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """All weights in a folder whose names begin so."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(each for each in folder.glob("*.safetensors") if each.is_file()):
        try:
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefixes)}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise InPlaceError(f"can't read {file}: {error}") from error
    return found


def _filled(path: str, entry: Entry, weights: dict[str, torch.Tensor]) -> Mixer:
    """A mixer with its weights, which are looked at before it gets memory."""
    try:
        shapes = {name: tensor.shape for name, tensor in empty_mixer(entry.spec, entry.config).state_dict().items()}
    except (TypedError, RuntimeError, ValueError, ArithmeticError, AssertionError, TypeError) as error:
        raise InPlaceError(f"no mixer can be made for {path}: {error}") from error
    own = {name: weights.get(f"{path}.mixer.{name}") for name in shapes}
    missing = [name for name, weight in own.items() if weight is None or weight.shape != shapes[name]]
    if missing:
        raise InPlaceError(
            f"the weights of the mixer at {path} are not in the folder, or of other shapes: {', '.join(missing)}"
        )
    mixer = entry.mixer()
    mixer.load_state_dict({name: weight for name, weight in own.items() if weight is not None})
    return mixer
