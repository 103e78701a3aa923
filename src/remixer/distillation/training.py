"""The loop that runs a stage of transfer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from remixer.distillation.batches import AgainAndAgain
from remixer.distillation.budget import Budget
from remixer.distillation.checkpoint import Checkpoint, Reached
from remixer.distillation.errors import TransferError
from remixer.distillation.stage import Stage
from remixer.rewrite.inputs import Call

BETAS = (0.9, 0.99)
LEAST_GAIN = 1e-3  # of a loss: what is less is a plateau


@dataclass(frozen=True)
class Rules:
    """How a stage is run.

    Attributes:
        seconds: that it may take, or None.
        steps: that it may take, or None.
        scale: what all learning rates are multiplied by.
        patience: it ends when so many measurements on the validation data in a row were no better, if not None.
        judge_every: steps between these measurements.
        save_every: seconds between checkpoints.
        clip: the largest norm of all gradients together, or None; for losses that are one.
    """

    seconds: float | None
    steps: int | None
    scale: float = 1.0
    patience: int | None = None
    judge_every: int = 10
    save_every: float = 60.0
    clip: float | None = None


def train(
    stage: Stage,
    batches: AgainAndAgain,
    rules: Rules,
    checkpoint: Checkpoint,
    *,
    validation: Iterable[Call] = (),
    watch: Callable[[Budget, Reached], None] | None = None,
) -> Reached:
    """Run a stage to its end, from where the checkpoint left it.

    Args:
        stage: what is trained.
        batches: of the training data, those that were used before left out.
        rules: when it ends, among others.
        checkpoint: where it is kept what was reached.
        validation: batches whose losses decide which parameters were the best, if there are any.
        watch: called after each step.

    Raises:
        TransferError: a loss is not finite; or the checkpoint is not one of this stage.
    """
    reached = checkpoint.of(stage.name)
    _check(stage, reached, checkpoint)
    held = list(validation)
    if reached.done:
        _restore(stage, reached, "now")
        return reached
    optimiser = torch.optim.Adam(
        [{"params": [each], "rate": rules.scale * stage.rate(name)} for name, each in stage.parameters.items()],
        lr=0.0,
        betas=BETAS,
    )
    if reached.step:
        _restore(stage, reached, "now")
        _restore_moments(stage, optimiser, reached)
    elif held:
        _judge(stage, held, reached)
    budget = Budget(rules.seconds, rules.steps, reached.seconds, reached.step)
    saved = time.perf_counter()
    try:
        while not budget.over and not _stuck(reached, rules) and not _learned(stage, batches.count, reached):
            call = next(batches, None)
            if call is None:
                break
            _step(stage, call, optimiser, budget, rules, reached)
            if held and budget.step % rules.judge_every == 0:
                _judge(stage, held, reached)
            if watch is not None:
                watch(budget, reached)
            if time.perf_counter() - saved > rules.save_every:
                _keep(stage, optimiser, budget, reached)
                checkpoint.write()
                saved = time.perf_counter()
    except KeyboardInterrupt:
        _keep(stage, optimiser, budget, reached)
        checkpoint.write()
        raise
    if held and (not reached.judged or reached.judged[-1][0] != budget.step):
        _judge(stage, held, reached)
    _keep(stage, optimiser, budget, reached)
    reached.done = True
    if held:
        _restore(stage, reached, "best")
    checkpoint.write()
    return reached


def _check(stage: Stage, reached: Reached, checkpoint: Checkpoint) -> None:
    """Whether what a file says was reached can be gone on from."""
    shapes = {name: parameter.shape for name, parameter in stage.parameters.items()}
    kinds = {"now", "best", "first", "second"}
    wrong = [
        name
        for name, tensor in reached.tensors.items()
        if name.partition("/")[0] not in kinds or shapes.get(name.partition("/")[2]) != tensor.shape
    ]
    wrong += [
        name
        for name in reached.tensors
        if name.startswith("first/") and name.replace("first", "second", 1) not in reached.tensors
    ]
    judged = [losses.keys() for _, losses in reached.judged]
    names = stage.groups.keys()
    fits = all(each == names for each in judged) and (not reached.losses or reached.losses.keys() == names)
    if wrong or not fits or reached.step < 0:
        told = f", such as {wrong[0]:.80}" if wrong else ""
        raise TransferError(
            f"the checkpoint {checkpoint.path} doesn't fit the stage {stage.name!r}{told}: delete it to begin again"
        )


def _step(
    stage: Stage, call: Call, optimiser: torch.optim.Adam, budget: Budget, rules: Rules, reached: Reached
) -> None:
    optimiser.zero_grad()
    losses = stage.learn(call)
    for group, loss in losses.items():
        if not math.isfinite(loss):
            raise TransferError(
                f"the loss of {group} is {loss} at step {budget.step + 1}: give a smaller learning_rate than "
                f"{rules.scale:g}, or look whether the data holds NaN"
            )
        reached.losses.setdefault(group, []).append(loss)
    factor = stage.factor(min(budget.progress, 1.0), budget.step)
    for settings in optimiser.param_groups:
        settings["lr"] = settings["rate"] * factor
    if rules.clip is not None:
        torch.nn.utils.clip_grad_norm_(stage.parameters.values(), rules.clip)
    optimiser.step()
    budget.step += 1
    reached.step, reached.seconds = budget.step, budget.elapsed


def _judge(stage: Stage, held: list[Call], reached: Reached) -> None:
    """Measure on the validation data, and keep the parameters of every group that was never better."""
    found: dict[str, float] = {}
    for call in held:
        for group, loss in stage.measure(call).items():
            found[group] = found.get(group, 0.0) + loss / len(held)
    for group, loss in found.items():
        if all(loss < before[group] for _, before in reached.judged):
            for name in stage.groups[group]:
                reached.tensors[f"best/{name}"] = stage.parameters[name].detach().clone()
    reached.judged.append((reached.step, found))


def _stuck(reached: Reached, rules: Rules) -> bool:
    """Whether the mean loss on the validation data is no better than it was so many measurements ago."""
    if rules.patience is None or len(reached.judged) <= rules.patience:
        return False
    means = [sum(losses.values()) / len(losses) for _, losses in reached.judged]
    return min(means[-rules.patience :]) > (1.0 - LEAST_GAIN) * min(means[: -rules.patience])


def _learned(stage: Stage, count: int | None, reached: Reached) -> bool:
    """Whether no loss of the last pass over all batches was more than rounding gives."""
    if count is None or not reached.step:
        return False
    return all(max(losses[-count:]) <= stage.negligible for losses in reached.losses.values())


def _keep(stage: Stage, optimiser: torch.optim.Adam, budget: Budget, reached: Reached) -> None:
    for name, parameter in stage.parameters.items():
        reached.tensors[f"now/{name}"] = parameter.detach()
        moments = optimiser.state.get(parameter)
        if moments:
            reached.tensors[f"first/{name}"] = moments["exp_avg"]
            reached.tensors[f"second/{name}"] = moments["exp_avg_sq"]
    reached.step, reached.seconds = budget.step, budget.elapsed


@torch.no_grad()
def _restore(stage: Stage, reached: Reached, kind: str) -> None:
    for name, parameter in stage.parameters.items():
        found = reached.tensors.get(f"{kind}/{name}")
        if found is not None:
            parameter.copy_(found)


def _restore_moments(stage: Stage, optimiser: torch.optim.Adam, reached: Reached) -> None:
    for name, parameter in stage.parameters.items():
        first: Tensor | None = reached.tensors.get(f"first/{name}")
        if first is not None:
            optimiser.state[parameter] = {
                "step": torch.tensor(float(reached.step)),
                "exp_avg": first.to(parameter.device).clone(),
                "exp_avg_sq": reached.tensors[f"second/{name}"].to(parameter.device).clone(),
            }
