"""What is asked of a plan, checked before any model is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remixer import mixers as known
from remixer.distillation.losses import Loss, loss_of
from remixer.mixers import MixerConfig
from remixer.planning.candidates import Cost
from remixer.planning.choosing import Limits
from remixer.planning.errors import PlanError

USUAL: tuple[MixerConfig, ...] = (known.LongShort(), known.Toeplitz(gate="value", weigh="key"))


@dataclass(frozen=True)
class Wish:
    """The options of `remixer.plan`, which says what they are.

    Raises:
        PlanError: an option has no meaning.
        UnknownMixerError: no mixer has this name.
        TransferError: no loss has this name.
    """

    mixers: Sequence[str | MixerConfig] = USUAL
    budget: float | None = None
    seconds: float | None = None
    harm: float | None = None
    length: int = 4096
    by_heads: bool = False
    transfer_steps: int = 0
    loss: str | Loss = "auto"
    batches: int = 4
    rounds: int = 3
    progress: bool = True

    def __post_init__(self) -> None:
        if len(self._limits) > 1:
            raise PlanError(f"give one of budget, seconds and harm, got {', '.join(self._limits)}")
        for name, value in self._limits.items():
            if value <= 0 or (name == "budget" and value > 1):
                room = "between 0 and 1" if name == "budget" else "above 0"
                raise PlanError(f"{name} must lie {room}, got {value}")
        for name, least in (("length", 1), ("batches", 1), ("rounds", 1), ("transfer_steps", 0)):
            if getattr(self, name) < least:
                raise PlanError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.configs:
            raise PlanError("no mixer was given to choose from")
        loss_of(self.loss)

    @property
    def configs(self) -> list[MixerConfig]:
        """What there is to choose from."""
        configs = [known.get(one).Config() if isinstance(one, str) else one for one in self.mixers]
        for config in configs:
            known.mixer_of(config)
        return configs

    @property
    def cost(self) -> Cost:
        """What is counted."""
        return "flops" if self.seconds is None else "seconds"

    @property
    def measure(self) -> Loss:
        """What harm is measured in."""
        return loss_of(self.loss)

    def limits(self, whole: float) -> Limits:
        """Where to stop, if the attentions as they are cost `whole`."""
        if self.harm is not None:
            return Limits(harm=self.harm)
        if self.seconds is not None:
            return Limits(cost=self.seconds)
        return Limits(cost=whole * (0.5 if self.budget is None else self.budget))

    @property
    def _limits(self) -> dict[str, float]:
        given = {"budget": self.budget, "seconds": self.seconds, "harm": self.harm}
        return {name: value for name, value in given.items() if value is not None}
