"""One way to train small models, the same for all that are compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]


def train(
    model: nn.Module,
    batches: Iterable[Any],
    loss_of: Loss,
    *,
    steps: int,
    rate: float,
    weight_decay: float = 0.01,
    warmup: int,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    """AdamW (0.9, 0.98) with gradients clipped to 1, a linear warm-up and a cosine down to a tenth.

    Args:
        model: trained in place; in eval mode afterwards.
        batches: as many as steps at least.
        loss_of: of the model and a batch.
        steps: how many updates.
        rate: the largest learning rate.
        weight_decay: of AdamW.
        warmup: steps in which the rate rises.
        progress: shows a bar with the loss.
        name: stands in front of the bar.

    Returns:
        Seconds, the process's CPU seconds (other work on the machine shows in the former only), steps per CPU
        second, and the mean loss of every tenth of the steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)

    def factor(step: int) -> float:
        down = 0.55 + 0.45 * math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup))
        return min(1.0, (step + 1) / max(1, warmup)) * down

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    bar = progress.add_task(name, total=steps)
    losses: list[float] = []
    seconds = cpu_seconds = 0.0
    model.train()
    for batch in islice(batches, steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
        progress.update(bar, advance=1, description=f"{name}, loss {losses[-1]:.3f}")
    model.eval()
    tenth = max(1, steps // 10)
    means = [sum(some) / len(some) for some in (losses[at : at + tenth] for at in range(0, len(losses), tenth))]
    rate_of_steps = len(losses) / cpu_seconds
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "steps_per_cpu_second": rate_of_steps, "losses": means}
