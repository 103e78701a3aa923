"""MODEL on the command line: a Hugging Face folder or id, a GGUF file, a saved artifact, or `module:function`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from remixer.commands.progress import doing, note

if TYPE_CHECKING:
    from torch import nn

    from remixer.remixed import Remixed
    from remixer.rewrite.inputs import Inputs

ARTIFACT, PARTITION = "remixer.json", "plan.json"
TOKENIZER = "tokenizer"  # the folder beside an artifact
_FUNCTION = re.compile(r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)")
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


class ModelError(ValueError):
    """MODEL names nothing that can be read, or nothing that fits the command."""


@dataclass(frozen=True)
class Found:
    """What MODEL stands for.

    Attributes:
        name: as it was given.
        model: in eval mode.
        inputs: example inputs, or None where they are still to be made.
        tokenizer: of transformers, if there is one.
        notes: what its user should know.
    """

    name: str
    model: nn.Module
    inputs: Inputs | None = None
    tokenizer: Any = None
    notes: tuple[str, ...] = ()

    @property
    def remixed(self) -> Remixed | None:
        """The model, if it is rewritten already."""
        from remixer.remixed import Remixed

        return self.model if isinstance(self.model, Remixed) else None

    def refuse_if_remixed(self, *asked: object) -> None:
        """Raise typer.BadParameter if anything is asked for that a rewritten model has already.

        Args:
            asked: mixers, inputs and sizes, as the options gave them; None or empty where they were left out.
        """
        if self.remixed is not None and any(asked):
            raise typer.BadParameter(f"{self.name} is rewritten already: it has its mixers and knows its inputs")

    def on(self, device: str | None) -> Found:
        """The same on a device.

        Raises:
            ModelError: there is no such device here.
        """
        if device is None:
            return self
        import torch

        try:
            return replace(self, model=self.model.to(torch.device(device)))
        except (RuntimeError, AssertionError) as error:  # torch's words where it was built without that device
            raise ModelError(f"can't use the device {device!r}: {str(error).partition(chr(10))[0]}") from error


def find(model: str) -> Found:
    """Load what MODEL stands for, and tell what its user should know.

    Raises:
        ModelError: it is nothing that can be read.
    """
    with doing(f"loading {model}"):
        found = _found(model)
    for each in found.notes:
        note(f"{model}: {each}")
    return found


def _found(model: str) -> Found:
    path = Path(model)
    if not path.exists() and (match := _FUNCTION.fullmatch(model)):
        return _from_function(model, match["module"], match["function"])
    from remixer.commands import huggingface

    if path.is_file() and path.suffix == ".gguf":
        return huggingface.from_gguf(model, path)
    if path.is_dir():
        return _from_folder(model, path)
    if path.exists():
        raise ModelError(f"{model} is a file that is no model: give a folder, a .gguf file, or module:function")
    if not _HUB.fullmatch(model) or model.startswith("."):
        raise ModelError(f"there is no {model}: {_WANTED}")
    return huggingface.from_hub(model)


_WANTED = (
    "MODEL is a folder that remixer or transformers saved, a .gguf file, an id on the Hugging Face hub, or "
    "module:function, which returns a model, or a model and its inputs"
)


def _from_folder(model: str, path: Path) -> Found:
    from remixer.commands import huggingface

    if (path / ARTIFACT).is_file():
        import remixer

        tokenizer = path / TOKENIZER
        return Found(
            model,
            remixer.load(path).eval(),
            tokenizer=huggingface.tokenizer_of(tokenizer) if tokenizer.is_dir() else None,
        )
    if (path / "config.json").is_file():
        return huggingface.from_hub(model)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return huggingface.from_gguf(model, files[0])
    if files:
        raise ModelError(f"{model} holds {len(files)} GGUF files; give one of them: {', '.join(map(str, files))}")
    if (path / PARTITION).is_file():
        raise ModelError(f"{model} holds a partitioned model: `remixer run` runs it, under torchrun")
    raise ModelError(f"the folder {model} holds neither {ARTIFACT} nor config.json: {_WANTED}")


def _from_function(given: str, module: str, function: str) -> Found:
    import torch
    from torch import nn

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it
    try:
        made = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ModelError(f"there is no module {module}, here or installed, for {given}") from error
    except AttributeError as error:
        raise ModelError(f"the module {module} has no {function}") from error
    try:
        result = made() if not isinstance(made, nn.Module) else made
    except Exception as error:
        raise ModelError(f"{given} raised {type(error).__name__}: {error}") from error
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise ModelError(f"{given} must return a torch module, or one and its inputs; got {type(model).__name__}")
    if isinstance(model, torch.export.ExportedProgram):
        raise ModelError(f"{given} returned an ExportedProgram: return the model that it was made from")
    return Found(given, model.eval(), inputs)
