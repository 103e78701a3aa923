"""Example inputs for a model: those of a file, those that came with it, or made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from remixer.commands.models import Found

if TYPE_CHECKING:
    from torch import Tensor, nn

    from remixer.rewrite.inputs import Inputs

BATCH, LENGTH = 2, 16


class InputsError(ValueError):
    """There are no inputs for a model, or they can't be read."""


def inputs_for(found: Found, file: Path | None, batch: int | None, length: int | None) -> Inputs:
    """Inputs to capture a model with.

    Args:
        found: the model.
        file: a safetensors file of inputs by name, or None.
        batch: rows of what is made up; 2 if None.
        length: tokens of what is made up; 16 if None.

    Raises:
        typer.BadParameter: sizes are given for inputs that are not made up.
        InputsError: the file can't be read, or nobody can say what the model takes.
    """
    sized = batch is not None or length is not None
    if sized and (file is not None or found.inputs is not None):
        owner = "--inputs" if file is not None else found.name
        raise typer.BadParameter(f"--batch and --length are for inputs that are made up; here {owner} gives them")
    if file is not None:
        return read_inputs(file)
    if found.inputs is not None:
        return by_name(found.model, found.inputs)
    made = _made_up(found, BATCH if batch is None else batch, LENGTH if length is None else length)
    from remixer.rewrite.modules import device_of

    return {name: tensor.to(device_of(found.model)) for name, tensor in made.items()}


def read_inputs(file: Path) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors file.

    Raises:
        InputsError: it can't be read, or holds nothing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputsError(f"cannot read the inputs {file}: {error}") from error
    if not found:
        raise InputsError(f"{file} holds no inputs")
    return found


def _made_up(found: Found, batch: int, length: int) -> dict[str, Tensor]:
    import inspect

    if found.remixed is not None:
        raise InputsError(f"{found.name} is rewritten already: give the model that it was made from")
    tried = first_that_runs(found.model, _candidates(found, batch, length))
    if isinstance(tried, dict):
        return tried
    name, signature = type(found.model).__name__, inspect.signature(found.model.forward)
    raise InputsError(
        f"nobody can say what {name} takes, whose forward takes {signature}"
        + (f"; the last that was tried raised {tried}" if tried else "")
        + ". What to do: --inputs with a safetensors file of inputs by name, or module:function that returns the model "
        "and its inputs"
    )


def _candidates(found: Found, batch: int, length: int) -> Iterable[Mapping[str, Tensor]]:
    if hasattr(found.model, "config") and hasattr(found.model, "main_input_name"):
        from remixer.commands.config_inputs import from_config

        return from_config(found.model, found.tokenizer, batch, length)
    from remixer.commands.signature_inputs import from_signature

    return from_signature(found.model, batch, length)


def first_that_runs(model: nn.Module, candidates: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor] | str:
    """The first inputs that a model takes; if none, what it raised for the last, or ""."""
    import torch

    from remixer.rewrite.modules import device_of

    device, told = device_of(model), ""
    for candidate in candidates:
        given = {name: tensor.to(device) for name, tensor in candidate.items()}
        try:
            with torch.no_grad():
                model(**given)
        except Exception as error:  # whatever the model's own code raises for inputs that it doesn't take
            told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
        else:
            return dict(candidate)
    return told


def by_name(model: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs by the names that the model's forward has for them, so that files can hold them, where it has any."""
    import inspect

    from remixer.rewrite.inputs import as_call, check_fits

    args, kwargs = as_call(inputs)
    check_fits(model, (args, kwargs))
    signature = inspect.signature(model.forward)
    kinds = {each.kind for each in signature.parameters.values()}
    if not args or kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
        return inputs
    places = [name for name, each in signature.parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    return {**dict(zip(places, args, strict=False)), **kwargs}


def described(inputs: Inputs) -> dict[str, Any]:
    """Dtype and shape of inputs, by name or place."""
    import torch

    from remixer.rewrite.inputs import as_call

    args, kwargs = as_call(inputs)
    places = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    return {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        for name, value in places.items()
        if isinstance(value, torch.Tensor)
    }
