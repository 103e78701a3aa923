"""Texts to learn from and texts held out, of Python's standard library and of its manual."""

from __future__ import annotations

import re
import textwrap
from pydoc_data import topics
from typing import Any, NamedTuple

import torch
from standard_library import by_size, modules
from torch import Tensor

HELD_OUT = 5  # of the files by size, one in so many
LONG, PIECE = 200, 450  # characters


def windows(tokenizer: Any, length: int, *, held_out: bool, count: int, most: int = 6) -> Tensor:
    """Source code, (count, length) token ids, no more than so many windows of one module; a fixed random order.

    Modules are split by file: what is held out at one length is held out at all.
    """
    sources = modules()
    chosen = [name for index, name in enumerate(by_size(sources)) if (index % HELD_OUT == 1) == held_out]
    found: list[list[int]] = []
    for name in chosen:
        if len(found) >= 4 * count:
            break
        text = sources[name].decode("utf-8", "ignore")[: 8 * length * most]
        ids = tokenizer(text)["input_ids"]
        found += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:most]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:count]
    if len(order) < count:
        raise ValueError(f"there are {len(found)} windows of {length} tokens, {count} are asked for")
    return torch.tensor([found[index] for index in order])


def prose(tokenizer: Any, length: int, count: int) -> Tensor:
    """The language's manual, (count, length) token ids."""
    ids = tokenizer("\n\n".join(topics.topics[name] for name in sorted(topics.topics)))["input_ids"]
    step = (len(ids) - length) // count
    return torch.tensor([ids[start : start + length] for start in range(0, count * step, step)])


class Paragraphs(NamedTuple):
    """Docstrings, split by file.

    Attributes:
        learned: of these files, every piece of a docstring or of a comment, to learn from.
        choosing: docstrings of other files, to choose options by.
        judged: docstrings of other files still, to judge by what was chosen.
    """

    learned: list[str]
    choosing: list[str]
    judged: list[str]


def paragraphs() -> Paragraphs:
    """Docstrings of 200 characters and more, to choose and to judge by, and whatever is said elsewhere to learn from.

    Each in a fixed random order, none twice, and nothing of those that choose and judge among those to learn from.
    """
    sources = modules()
    parts: list[dict[str, None]] = [{}, {}, {}]
    known: set[str] = set()
    for index, name in sorted(enumerate(by_size(sources)), key=lambda each: each[0] % HELD_OUT not in (1, 2)):
        source, place = sources[name].decode("utf-8", "ignore"), {1: 1, 2: 2}.get(index % HELD_OUT, 0)
        for text in _docstrings(source) if place else _said(source):
            pieces = textwrap.wrap(text, PIECE)
            if place and len(text) >= LONG and text not in known:
                parts[place][text] = None
            elif not place:
                parts[0].update(dict.fromkeys(each for each in pieces if len(each) >= LONG and each not in known))
            known.update((text, *pieces))
    generator = torch.Generator().manual_seed(0)
    shuffled = [(list(part), torch.randperm(len(part), generator=generator)) for part in parts]
    return Paragraphs(*([part[place] for place in order] for part, order in shuffled))


def _docstrings(source: str) -> list[str]:
    return [" ".join(text.split()) for text in re.findall(r'"""(.*?)"""', source, re.DOTALL)]


def _said(source: str) -> list[str]:
    """Docstrings and comments of whole lines."""
    comments = re.findall(r"(?:^[ \t]*#.*\n)+", source, re.MULTILINE)
    return [*_docstrings(source), *(" ".join(each.replace("#", " ").split()) for each in comments)]


def as_inputs(ids: Tensor, rows: int = 1) -> list[dict[str, Tensor]]:
    """Batches of so many rows, nothing padded."""
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(rows)]


def padded(tokenizer: Any, texts: list[str], length: int, rows: int) -> list[dict[str, Tensor]]:
    """Batches of texts, cut to a length, and padded to the longest of each."""
    found = []
    for start in range(0, len(texts), rows):
        tokens = tokenizer(
            texts[start : start + rows], return_tensors="pt", padding=True, truncation=True, max_length=length
        )
        found.append({name: tokens[name] for name in ("input_ids", "attention_mask")})
    return found


def alike(texts: list[str], rows: int) -> list[str]:
    """The same texts, in batches of about the same length, so that little is padded; the batches in a random order."""
    by_length = sorted(texts, key=len)
    batches = [by_length[start : start + rows] for start in range(0, len(texts), rows)]
    full, rest = (batches[:-1], batches[-1]) if len(batches[-1]) < rows else (batches, [])
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(0))
    return [text for place in order for text in full[place]] + rest
