"""What a transfer has reached, in one file that nothing has to be unpickled from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remixer.distillation.errors import TransferError
from remixer.export.files import whole
from remixer.export.typed import TypedError, parsed, plain, typed

FORMAT = "1"


@dataclass
class Reached:
    """How far a stage is.

    Attributes:
        stage: its name.
        step: steps done.
        seconds: spent on it.
        done: whether it is over.
        losses: by group, one for each step.
        judged: the losses on the validation data, with the step that each was measured after.
        tensors: parameters, the optimiser's two moments of each, and the best parameters so far.
    """

    stage: str
    step: int = 0
    seconds: float = 0.0
    done: bool = False
    losses: dict[str, list[float]] = field(default_factory=dict)
    judged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Checkpoint:
    """A file with all stages of one transfer.

    Args:
        path: where it is, or is to be; None keeps nothing.
        settings: what a transfer must have in common with the one that is gone on with.

    Raises:
        TransferError: the file is of a transfer with other settings, or can't be read; or its folder doesn't exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.stages: dict[str, Reached] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)
        elif self.path is not None and not self.path.parent.is_dir():
            raise TransferError(f"there is no folder {self.path.parent} to write the checkpoint {self.path.name} to")

    def of(self, stage: str) -> Reached:
        """How far a stage is; at its start if it was never begun."""
        return self.stages.setdefault(stage, Reached(stage))

    def write(self) -> None:
        """Put all stages into the file; it is whole at any time."""
        from safetensors.torch import save_file

        if self.path is None:
            return
        tensors = {
            f"{stage}/{name}": tensor.detach().cpu().clone().contiguous()
            for stage, reached in self.stages.items()
            for name, tensor in reached.tensors.items()
        }
        told = {
            name: {
                "step": one.step,
                "seconds": one.seconds,
                "done": one.done,
                "losses": one.losses,
                "judged": one.judged,
            }
            for name, one in self.stages.items()
        }
        head = {"format": FORMAT, "settings": json.dumps(self.settings), "stages": json.dumps(plain(told))}
        with whole(self.path) as draft:
            save_file(tensors or {"none": torch.zeros(0)}, draft, head)

    def _read(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            if path.exists() and not path.is_file():
                raise TypedError("this is no regular file")
            with safe_open(path, "pt") as file:
                head = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            settings, told = parsed(head.get("settings", "null")), parsed(head.get("stages", "null"))
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise TransferError(f"cannot read the checkpoint {path}: {error}") from error
        if head.get("format") != FORMAT or not isinstance(settings, dict) or not isinstance(told, dict):
            raise TransferError(f"{path} is no checkpoint of a transfer")
        for name in sorted(settings.keys() | self.settings.keys()):
            if settings.get(name) != self.settings.get(name):
                was, now = settings.get(name), self.settings.get(name)
                raise TransferError(
                    f"the checkpoint {path} is of another transfer: {name} was {was!r:.200}, and is {now!r:.200}. "
                    "Give it another checkpoint, or delete this one to begin again"
                )
        for stage, one in told.items():
            own = {name.partition("/")[2]: each for name, each in tensors.items() if name.startswith(f"{stage}/")}
            try:
                self.stages[stage] = typed(Reached, {**one, "stage": stage}, f"stage {stage:.40}")
            except (TypedError, TypeError) as error:
                raise TransferError(f"cannot read the checkpoint {path}: {error}") from error
            self.stages[stage].tensors = own
