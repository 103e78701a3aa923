"""Two tasks in the style of the Long Range Arena (Tay et al., 2021), made at run time: ListOps, and text by source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import listops
import torch
from standard_library import modules, split
from torch import Tensor

PACKAGES = ("asyncio", "email", "idlelib", "importlib", "multiprocessing", "tkinter", "unittest", "xml")
S = TypeVar("S")
Batch = tuple[Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class Task:
    """Sequences to classify.

    Attributes:
        name: for tables.
        vocabulary: how many tokens there are.
        classes: how many labels there are.
        length: of the longest sequence.
        train: gives batches without end, the same ones at every call: ids (B, T), which tokens exist (B, T) or None,
            and labels (B,).
        test: batches of what training never sees.
    """

    name: str
    vocabulary: int
    classes: int
    length: int
    train: Callable[[], Iterator[Batch]]
    test: list[Batch]

    @property
    def chance(self) -> float:
        """The accuracy of naming the commonest label of the test whatever comes."""
        labels = torch.cat([labels for _, _, labels in self.test])
        return float(labels.bincount().max()) / len(labels)


def listops_task(*, rows: int, tests: int, min_length: int, max_length: int, seed: int = 0) -> Task:
    """ListOps: the value of an expression. No two samples are the same, so that nothing of the test is trained on."""

    def samples() -> Iterator[tuple[list[str], int]]:
        return listops.samples(seed, min_length=min_length, max_length=max_length)

    def train() -> Iterator[Batch]:
        return batches(islice(samples(), tests, None), rows, _listops_batch)

    test = list(batches(islice(samples(), tests), rows, _listops_batch))
    return Task("ListOps", len(listops.TOKENS) + 1, 10, max_length, train, test)


def _listops_batch(samples: Sequence[tuple[list[str], int]]) -> Batch:
    longest = max(len(tokens) for tokens, _ in samples)
    ids = torch.full((len(samples), longest), len(listops.TOKENS))
    for row, (tokens, _) in enumerate(samples):
        ids[row, : len(tokens)] = torch.tensor([listops.ID[token] for token in tokens])
    return ids, ids < len(listops.TOKENS), torch.tensor([value for _, value in samples])


def text_task(*, rows: int, tests: int, length: int, seed: int = 0) -> Task:
    """Text: which package of the standard library some bytes come from. Files of the test are not trained on.

    Raises:
        ValueError: this Python has not all the packages.
    """
    known, unknown = zip(*(split(modules(package), one_in=4) for package in PACKAGES), strict=True)
    missing = [name for name, text in zip(PACKAGES, unknown, strict=True) if len(text) < length]
    if missing:
        raise ValueError(f"this Python's standard library has too little of {', '.join(missing)}")

    def samples() -> Iterator[tuple[bytes, int]]:
        rng = random.Random(seed)
        while True:
            label = rng.randrange(len(PACKAGES))
            start = rng.randrange(len(known[label]) - length + 1)
            yield known[label][start : start + length], label

    def train() -> Iterator[Batch]:
        return batches(samples(), rows, _text_batch)

    rng, chosen = random.Random(seed), []
    for label, text in enumerate(unknown):
        chunks = [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
        chosen += [(chunk, label) for chunk in rng.sample(chunks, min(tests // len(PACKAGES), len(chunks)))]
    return Task("Text", 256, len(PACKAGES), length, train, list(batches(iter(chosen), rows, _text_batch)))


def _text_batch(samples: Sequence[tuple[bytes, int]]) -> Batch:
    ids = torch.tensor([list(text) for text, _ in samples])
    return ids, None, torch.tensor([label for _, label in samples])


def batches(samples: Iterator[S], rows: int, make: Callable[[Sequence[S]], Batch]) -> Iterator[Batch]:
    """So many samples at a time; the last ones may be fewer."""
    while some := list(islice(samples, rows)):
        yield make(some)
