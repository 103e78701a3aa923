"""Attention transfer: every mixer learns to give what the attention in its place gives, all in one pass over the data.

Zhang et al., 2024, "LoLCATs", section 3.2 (attention transfer); here at the boundary of any attention in any model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import nn

from remixer.distillation.lesson import Lesson
from remixer.distillation.stage import Stage
from remixer.mixers import Mixer
from remixer.passes.lessons import with_lessons
from remixer.passes.sites import sites_of
from remixer.rewrite.inputs import Call
from remixer.rewrite.program import Program

WARM_UP = 5
LOWEST = 0.05  # of the learning rate, at the end


class AttentionStage(Stage):
    """The original runs once per batch; beside each of its attentions the mixer is compared and learns.

    Only the mixers' own parameters move. Of all tensors, those of one layer are held at a time.
    """

    name = "attention"
    negligible = 1e-10

    def __init__(self, original: Program, mixers: dict[str, Mixer]) -> None:
        own = {site.name for site in sites_of(original)}
        trained = {
            name: mixer for name, mixer in mixers.items() if name in own and any(True for _ in mixer.parameters())
        }
        self.lessons = {name: Lesson(mixer) for name, mixer in trained.items()}
        self.parameters = {
            f"{site}.{name}": parameter
            for site, lesson in self.lessons.items()
            for name, parameter in lesson.pupil.named_parameters()
        }
        self.groups = {
            site: tuple(f"{site}.{name}" for name, _ in lesson.pupil.named_parameters())
            for site, lesson in self.lessons.items()
        }
        modules: dict[str, nn.Module] = dict(self.lessons)
        self._teacher = with_lessons(original, modules).eval()

    def start(self, batches: Iterable[Call], count: int) -> None:
        """Closed-form starts of all mixers that have some, each of so many batches."""
        waiting = {site: list(lesson.pupil.starters()) for site, lesson in self.lessons.items()}
        held = list(itertools.islice(batches, count)) if any(waiting.values()) else []
        while any(waiting.values()):
            for site, lesson in self.lessons.items():
                lesson.starter = waiting[site].pop(0) if waiting[site] else None
            for call in held:
                self._run(call, "start")
            with torch.no_grad():
                for lesson in self.lessons.values():
                    if lesson.starter is not None:
                        lesson.starter.settle()
                    lesson.starter = None

    def rate(self, name: str) -> float:
        """See Stage.rate: as the mixer has it."""
        site = next(site for site, names in self.groups.items() if name in names)
        return self.lessons[site].pupil.learning_rate(name.removeprefix(f"{site}."))

    def factor(self, progress: float, step: int) -> float:
        """See Stage.factor: half a cosine after a few steps of warming up, which spare the closed-form starts."""
        warm = min(1.0, (step + 1) / WARM_UP)
        return warm * (LOWEST + (1.0 - LOWEST) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))

    def learn(self, call: Call) -> dict[str, float]:
        """See Stage.learn."""
        return self._run(call, "learn")

    def measure(self, call: Call) -> dict[str, float]:
        """See Stage.measure."""
        return self._run(call, "measure")

    def settle(self) -> None:
        """See Stage.settle."""
        for lesson in self.lessons.values():
            lesson.settle()

    def _run(self, call: Call, task: str) -> dict[str, float]:
        for lesson in self.lessons.values():
            lesson.task = task  # type: ignore[assignment]
        args, kwargs = call
        with torch.no_grad():
            said = self._teacher(*args, **kwargs)
        return {name: float(error) for name, error in said.items()}
