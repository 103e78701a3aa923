"""Two tasks in the style of the Long Range Arena (Tay et al., 2021), made at run time: ListOps, and text by source."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import listops
import torch
from standard_library import modules, split
from torch import Tensor

PACKAGES = ("asyncio", "email", "idlelib", "importlib", "multiprocessing", "tkinter", "unittest", "xml")
T = TypeVar("T")
Batch = tuple[Tensor, Tensor | None, Tensor]


@dataclass(frozen=True)
class Task:
    """Sequences to classify.

    Attributes:
        name: for tables.
        vocabulary: how many tokens there are.
        classes: how many labels there are.
        length: of the longest sequence.
        train: batches of ids (B, T), which tokens exist (B, T) or None, and labels (B,).
        test: the same, from what training has not seen.
    """

    name: str
    vocabulary: int
    classes: int
    length: int
    train: list[Batch]
    test: list[Batch]

    @property
    def chance(self) -> float:
        """The accuracy of naming the commonest label of the test whatever comes."""
        labels = torch.cat([labels for _, _, labels in self.test])
        return float(labels.bincount().max()) / len(labels)


def in_rows(samples: Sequence[T], rows: int) -> list[Sequence[T]]:
    """So many at a time; the last ones may be fewer."""
    return [samples[at : at + rows] for at in range(0, len(samples), rows)]


def listops_task(*, steps: int, rows: int, tests: int, min_length: int, max_length: int, seed: int = 0) -> Task:
    """ListOps: the value of an expression. No two samples are the same, so that nothing of the test was seen."""
    found = listops.samples(seed, min_length=min_length, max_length=max_length)
    test = list(islice(found, tests))
    train = list(islice(found, steps * rows))
    batches = ([_listops_batch(some) for some in in_rows(samples, rows)] for samples in (train, test))
    return Task("ListOps", len(listops.TOKENS) + 1, 10, max_length, *batches)


def _listops_batch(samples: Sequence[tuple[list[str], int]]) -> Batch:
    longest = max(len(tokens) for tokens, _ in samples)
    ids = torch.full((len(samples), longest), len(listops.TOKENS))
    for row, (tokens, _) in enumerate(samples):
        ids[row, : len(tokens)] = torch.tensor([listops.ID[token] for token in tokens])
    return ids, ids < len(listops.TOKENS), torch.tensor([value for _, value in samples])


def text_task(*, steps: int, rows: int, tests: int, length: int, seed: int = 0) -> Task:
    """Text: which package of the standard library some bytes come from. Files of the test are not trained on.

    Raises:
        ValueError: this Python has not all the packages.
    """
    rng = random.Random(seed)
    texts = [split(modules(package), one_in=4) for package in PACKAGES]
    missing = [name for name, (_, test) in zip(PACKAGES, texts, strict=True) if len(test) < length]
    if missing:
        raise ValueError(f"this Python's standard library has too little of {', '.join(missing)}")
    train = []
    for _ in range(steps * rows):
        label = rng.randrange(len(PACKAGES))
        text = texts[label][0]
        start = rng.randrange(len(text) - length + 1)
        train.append((text[start : start + length], label))
    test = []
    each = tests // len(PACKAGES)
    for label, (_, text) in enumerate(texts):
        chunks = [text[at : at + length] for at in range(0, len(text) - length + 1, length)]
        test += [(chunk, label) for chunk in rng.sample(chunks, min(each, len(chunks)))]
    batches = ([_text_batch(some) for some in in_rows(samples, rows)] for samples in (train, test))
    return Task("Text", 256, len(PACKAGES), length, *batches)


def _text_batch(samples: Sequence[tuple[bytes, int]]) -> Batch:
    ids = torch.tensor([list(text) for text, _ in samples])
    return ids, None, torch.tensor([label for _, label in samples])
