"""Texts to learn from and texts held out, of Python's standard library and of its manual."""

from __future__ import annotations

import re
from pydoc_data import topics
from typing import Any

import torch
from standard_library import modules
from torch import Tensor

HELD_OUT = 5  # of the files by size, one in so many


def windows(tokenizer: Any, length: int, *, held_out: bool, count: int, most: int = 6) -> Tensor:
    """Source code, (count, length) token ids, no more than so many windows of one module; a fixed random order.

    Modules are split by file: what is held out at one length is held out at all.
    """
    sources = modules()
    by_size = sorted(sources, key=lambda name: (-len(sources[name]), name))
    chosen = [name for index, name in enumerate(by_size) if (index % HELD_OUT == 1) == held_out]
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


def paragraphs() -> tuple[list[str], list[str]]:
    """Docstrings of 200 characters and more, to learn from and held out, split by file."""
    sources = modules()
    by_size = sorted(sources, key=lambda name: (-len(sources[name]), name))
    parts: tuple[list[str], list[str]] = ([], [])
    for index, name in enumerate(by_size):
        for text in re.findall(r'"""(.*?)"""', sources[name].decode("utf-8", "ignore"), re.DOTALL):
            plain = " ".join(text.split())
            if len(plain) >= 200 and plain not in parts[0] and plain not in parts[1]:
                parts[index % HELD_OUT == 1].append(plain)
    generator = torch.Generator().manual_seed(0)
    learned, held = ([part[i] for i in torch.randperm(len(part), generator=generator)] for part in parts)
    return learned, held


def as_inputs(ids: Tensor, rows: int = 1) -> list[dict[str, Tensor]]:
    """Batches of so many rows, nothing padded."""
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(rows)]


def padded(tokenizer: Any, texts: list[str], length: int, rows: int) -> list[dict[str, Tensor]]:
    """Batches of texts, padded or cut to a length."""
    found = []
    for start in range(0, len(texts), rows):
        tokens = tokenizer(
            texts[start : start + rows], return_tensors="pt", padding="max_length", truncation=True, max_length=length
        )
        found.append({name: tokens[name] for name in ("input_ids", "attention_mask")})
    return found
