"""How long training goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Time or steps, whichever ends first.

    Attributes:
        seconds: of training in all, or None for any.
        steps: likewise.
        spent: seconds that were spent before this run.
        step: steps done.
    """

    seconds: float | None
    steps: int | None
    spent: float = 0.0
    step: int = 0
    _start: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds in all, those of runs that were cut off included."""
        return self.spent + time.perf_counter() - self._start

    @property
    def progress(self) -> float:
        """The share that is used up, from 0 to 1 and beyond."""
        shares = [0.0]
        if self.seconds is not None:
            shares.append(self.elapsed / self.seconds if self.seconds > 0 else 1.0)
        if self.steps is not None:
            shares.append(self.step / self.steps if self.steps > 0 else 1.0)
        return max(shares)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.progress >= 1.0
