"""Data on the command line: texts through a tokenizer, or batches of inputs, as a list of inputs by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remixer.commands.example_inputs import read_inputs
from remixer.commands.progress import doing

if TYPE_CHECKING:
    from torch import Tensor

MOST = 4096  # batches that are read: minutes of training see a few hundred
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
Batch = dict[str, "Tensor"]


class DataError(ValueError):
    """Data can't be read, or doesn't fit the model."""


@dataclass(frozen=True)
class Texts:
    """How texts become batches.

    Attributes:
        tokenizer: of transformers, or None if the model came with none.
        names: the inputs that the model takes.
        length: tokens of a row; longer texts become several rows.
        batch: rows of a batch.
        field: of each line of a .jsonl file that holds its text.
    """

    tokenizer: Any
    names: Sequence[str]
    length: int
    batch: int
    field: str = "text"


def read_data(path: Path, texts: Texts) -> list[Batch]:
    """All batches of a file or folder, at most 4,096.

    Args:
        path: a safetensors file, which is one batch, or a folder of them; or a text file, a .jsonl file with a text in
            each line, or a folder of these.
        texts: how texts become batches.

    Raises:
        DataError: there is nothing, something can't be read, or doesn't fit the model.
        InputsError: a safetensors file can't be read.
    """
    files = _files(path)
    tensors = [file for file in files if file.suffix == ".safetensors"]
    if tensors and len(tensors) < len(files):
        other = next(file for file in files if file not in tensors)
        raise DataError(f"{path} holds batches of inputs and texts, such as {tensors[0].name} and {other.name}")
    with doing(f"reading {path}"):
        if tensors:
            found = [_checked(read_inputs(file), file, texts.names) for file in tensors[:MOST]]
        else:
            found = list(_batches(_rows(_texts(files, texts.field), texts), texts))
    if not found:
        raise DataError(f"{path} holds no text of {2 if 'attention_mask' in texts.names else texts.length} tokens")
    return found


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path} to read data from")
    files = sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith("."))
    if not files:
        raise DataError(f"the folder {path} holds no file to read data from")
    return files


def _checked(batch: Batch, file: Path, names: Sequence[str]) -> Batch:
    if set(batch) != set(names):
        raise DataError(f"{file} holds {', '.join(sorted(batch))}; the model takes {', '.join(names)}")
    return {name: batch[name] for name in names}


def _texts(files: Sequence[Path], field: str) -> Iterator[str]:
    for file in files:
        try:
            if file.suffix == ".jsonl":
                with file.open(encoding="utf-8") as lines:
                    yield from (
                        _field(line, field, f"{file} line {n}") for n, line in enumerate(lines, 1) if line.strip()
                    )
            else:
                yield file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file} as text: {error}") from error


def _field(line: str, field: str, place: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is no JSON: {error}") from error
    text = found.get(field) if isinstance(found, dict) else found
    if not isinstance(text, str):
        has = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{place} has no text named {field!r}, it has {has}: say --field")
    return text


def _rows(texts: Iterator[str], how: Texts) -> Iterator[list[int]]:
    """Token ids of at most `length`, with the tokenizer's special ones; shorter ones only where a mask can tell."""
    if "input_ids" not in how.names:
        raise DataError(f"texts are for models that take input_ids; this one takes {', '.join(how.names)}")
    if other := [name for name in how.names if name not in TEXT_INPUTS]:
        raise DataError(f"the model takes {other[0]} too, which no text gives: give batches as safetensors files")
    if how.tokenizer is None:
        raise DataError("the model came without a tokenizer to read texts with: say --tokenizer, a folder")
    least = 2 if "attention_mask" in how.names else how.length
    for text in texts:
        given = how.tokenizer(text, truncation=True, max_length=how.length, return_overflowing_tokens=True)
        rows = given["input_ids"]
        for row in rows if rows and isinstance(rows[0], list) else [rows]:
            if len(row) >= least:
                yield row


def _batches(rows: Iterator[list[int]], how: Texts) -> Iterator[Batch]:
    held: list[list[int]] = []
    done = 0
    for row in rows:
        held.append(row)
        if len(held) == how.batch:
            yield _batch(held, how)
            held, done = [], done + 1
        if done == MOST:
            return
    if held:
        yield _batch(held, how)


def _batch(rows: list[list[int]], how: Texts) -> Batch:
    """One batch, shorter rows padded on the right."""
    import torch

    longest = max(map(len, rows))
    pad = next((each for each in (how.tokenizer.pad_token_id, how.tokenizer.eos_token_id) if each is not None), 0)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    known = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(longest).expand_as(ids).contiguous(),
    }
    return {name: known[name] for name in how.names}
