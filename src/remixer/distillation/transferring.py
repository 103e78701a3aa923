"""`transfer`: a rewritten model learns from the model it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from remixer.distillation.attention_stage import AttentionStage
from remixer.distillation.batches import AgainAndAgain, calls
from remixer.distillation.checkpoint import Checkpoint
from remixer.distillation.errors import TransferError
from remixer.distillation.losses import Loss, loss_of
from remixer.distillation.output_stage import OutputStage
from remixer.distillation.progress import shown
from remixer.distillation.stage import Stage
from remixer.distillation.training import Rules, train
from remixer.distillation.transfer_report import StageReport, TransferReport
from remixer.passes.original import Original
from remixer.passes.sites import Site, sites_of
from remixer.remixed import Remixed
from remixer.rewrite.agreement import mode
from remixer.rewrite.inputs import Call, Inputs
from remixer.rewrite.modules import device_of
from remixer.rewrite.program import Program

StageName = Literal["attention", "outputs"]
SHARE = {"attention": 0.35, "outputs": 0.65}  # of the budget, if both stages run
MINUTES = 5.0  # if nothing is said
STARTS = 4  # batches that closed-form starts look at


def transfer(
    remixed: nn.Module,
    data: Iterable[Inputs],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    stages: Iterable[StageName] = ("attention", "outputs"),
    loss: str | Loss = "auto",
    rank: int = 8,
    learning_rate: float = 1.0,
    validation: Iterable[Inputs] = (),
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: float = 60.0,
    seed: int = 0,
    progress: bool = True,
) -> TransferReport:
    """Let the mixers of a rewritten model learn from the attentions that they replaced, in place.

    First closed-form starts, then two stages. "attention": the original runs, and beside each of its attentions the
    mixer learns to give the same; all sites in one pass, only the mixers' own parameters move. "outputs": the rewritten
    model as a whole learns to give the original's outputs; low-rank adapters on the projections around the mixers
    are trained too, and merged in the end. So are tables of positions that were stretched by interpolation, as far as
    the data reaches. Dropout is off throughout. A stage ends early where nothing is left to learn: when all losses of
    a whole pass over the data were no more than rounding gives, as where a window covers every sequence.

    With `steps`, everything is decided by the data and the seed. With `minutes`, the machine's pace decides how many
    steps there are.

    Args:
        remixed: what `remix` gave. The model that it was made from must not have changed since.
        data: batches as `remix` took them: a list, or anything that can be gone through again and again. What can be
            gone through once only ends the training.
        minutes: of training in all; 5 if neither this nor steps is given.
        steps: of training in all.
        stages: which stages to run. If both, "attention" has 35 % of minutes and steps.
        loss: how outputs are compared: "logits" (KL of the next token), "states" (cosine of every token's), "mean"
            (cosine of the mean state too, for sentence embeddings), a function of (outputs, original's outputs,
            (B, T) mask of tokens that exist or None) that gives a scalar; "auto" goes by the outputs' names.
        rank: of the adapters; 0 for none.
        learning_rate: a factor on all learning rates.
        validation: batches that are not trained on. If there are any, of each site (or of the whole, in the
            second stage) the parameters are kept that were the best on them.
        patience: stop a stage when so many measurements on the validation data, one every 10 steps, were no better.
        checkpoint: a file to write what was reached to; if it exists, the transfer goes on from there.
        save_every: seconds between checkpoints.
        seed: of the adapters' start.
        progress: show a bar on stderr.

    Returns:
        The losses per site and step; also as `remixed.transfers`.

    Raises:
        TransferError: the model doesn't know its original, data doesn't fit, a loss isn't finite, an option has
            no meaning, or the checkpoint is of another transfer.

    Examples:
        >>> import remixer
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        >>> data = [torch.randn(2, 40, 32) for _ in range(4)]
        >>> small = remixer.remix(layer, remixer.LongShort(window=4, sinks=0), data[0])
        >>> report = transfer(small, data, steps=40, stages=["attention"], progress=False)
        >>> first, last = report.stages[0].first_and_last("self_attn")
        >>> last < first
        True
    """
    original = _original(remixed)
    assert isinstance(remixed, Remixed)
    wanted = _checked(stages, minutes, steps, rank, learning_rate, patience)
    chosen = loss_of(loss)
    sites = sites_of(Program.of(remixed))
    device = device_of(remixed)
    _same_device(original, device)
    minutes = MINUTES if minutes is None and steps is None else minutes
    settings = _settings(sites, wanted, loss, rank, learning_rate, seed)
    kept = Checkpoint(checkpoint, settings)
    held = list(calls(validation, original, device))
    if patience is not None and not held:
        raise TransferError("patience goes by validation data, and there is none")
    reports = []
    with mode(remixed, training=False):
        for name in wanted:
            share = SHARE[name] if len(wanted) > 1 else 1.0
            rules = Rules(
                None if minutes is None else 60.0 * minutes * share,
                None if steps is None else max(1, round(steps * share)),
                learning_rate,
                patience,
                save_every=save_every,
                clip=1.0 if name == "outputs" else None,
            )
            batches = AgainAndAgain(data, original, device, kept.of(name).step)
            stage: Stage
            if name == "attention":
                stage = AttentionStage(original, {site.name: site.mixer for site in sites})
                if not stage.parameters:
                    continue
                if not kept.of(name).step:
                    stage.start(calls(data, original, device), STARTS)
            else:
                stage = OutputStage(original, remixed, sites, chosen, rank, seed, _stretched(remixed, original))
            reports.append(run_stage(stage, batches, rules, kept, held, progress=progress))
    report = TransferReport(tuple(reports))
    remixed.meta["transfers"] = (*remixed.transfers, report)
    return report


def run_stage(
    stage: Stage,
    batches: AgainAndAgain,
    rules: Rules,
    kept: Checkpoint,
    held: Iterable[Call] = (),
    *,
    progress: bool = False,
) -> StageReport:
    """Run a stage to its end and let the model have what was learned; see `train`."""
    try:
        with shown(stage.name, progress) as watch:
            reached = train(stage, batches, rules, kept, validation=held, watch=watch)
        stage.settle()
    finally:
        stage.close()
    return StageReport.of(reached)


def _original(remixed: nn.Module) -> Program:
    if not isinstance(remixed, Remixed):
        raise TransferError(f"transfer takes what remixer.remix gave, got {type(remixed).__name__}")
    original = remixed.original
    if original is None:
        raise TransferError(
            "this model no longer knows the one it was made from: it was pickled, or saved without it. Transfer right "
            "after remix, or before, save it with original=True"
        )
    return original


def _stretched(remixed: Remixed, original: Program) -> list[str]:
    """Tables of positions that were made longer, and hold other rows than the original, which repeats its own."""
    made_from: Original = remixed.meta["original"]
    before, repeated = (dict(each.graph_module.named_parameters()) for each in (made_from.swept, original))
    longer = {
        name: table
        for name, table in remixed.named_parameters()
        if name in before and table.shape != before[name].shape
    }
    return [name for name, table in longer.items() if not torch.equal(table, repeated[name])]


def _checked(
    stages: Iterable[StageName],
    minutes: float | None,
    steps: int | None,
    rank: int,
    learning_rate: float,
    patience: int | None,
) -> list[StageName]:
    """The stages in their order, if all options make sense."""
    given = [stages] if isinstance(stages, str) else list(stages)
    if not given or set(given) - SHARE.keys():
        raise TransferError(f"stages must be some of {', '.join(SHARE)}, got {given}")
    for name, value in (("minutes", minutes), ("steps", steps), ("patience", patience)):
        if value is not None and value <= 0:
            raise TransferError(f"{name} must be above 0, got {value}")
    if rank < 0:
        raise TransferError(f"rank can't be negative, got {rank}")
    if learning_rate <= 0:
        raise TransferError(f"learning_rate is a factor above 0, got {learning_rate}")
    return [name for name in SHARE if name in given]  # type: ignore[misc]


def _same_device(original: Program, device: torch.device) -> None:
    there = next((each.device for each in original.graph_module.parameters()), device)
    if there != device:
        raise TransferError(
            f"the rewritten model is on {device}, the one it was made from on {there}: move that to {device} before "
            "remix, so that both are there"
        )


def _settings(
    sites: list[Site], stages: list[StageName], loss: str | Loss, rank: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """What must be the same where a transfer is gone on with."""
    return {
        "mixers": {site.name: site.mixer.config.to_dict() for site in sites},
        "stages": stages,
        "loss": loss if isinstance(loss, str) else getattr(loss, "__qualname__", "a function"),
        "rank": rank,
        "learning_rate": learning_rate,
        "seed": seed,
    }
