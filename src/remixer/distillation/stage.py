"""What can be trained: the interface between a stage of transfer and the loop that runs it."""

from __future__ import annotations

import abc
from collections.abc import Mapping

from torch import nn

from remixer.rewrite.inputs import Call


class Stage(abc.ABC):
    """A stage of transfer.

    Attributes:
        name: of the stage.
        parameters: what is trained, by name.
        groups: names of the losses, each with the parameters that it tells of.
        negligible: a loss that rounding alone may give; where none is above it, nothing is left to learn.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    groups: Mapping[str, tuple[str, ...]]
    negligible: float

    @abc.abstractmethod
    def rate(self, name: str) -> float:
        """The learning rate of a parameter at its highest."""

    @abc.abstractmethod
    def factor(self, progress: float, step: int) -> float:
        """What learning rates are multiplied by.

        Args:
            progress: the share of the budget that is used up, 0 to 1.
            step: how many steps were done.
        """

    @abc.abstractmethod
    def learn(self, call: Call) -> dict[str, float]:
        """Leave the gradients of one batch behind; the losses by group."""

    @abc.abstractmethod
    def measure(self, call: Call) -> dict[str, float]:
        """The losses of one batch by group."""

    @abc.abstractmethod
    def settle(self) -> None:
        """Let the model have what was learned; called once, when the stage is over."""

    def close(self) -> None:
        """Leave nothing behind, whether the stage came to its end or not."""
        for parameter in self.parameters.values():
            parameter.grad = None
