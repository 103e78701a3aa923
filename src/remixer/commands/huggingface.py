"""Models and tokenizers of transformers, from a folder, a GGUF file or the hub; their own code never runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remixer.commands.models import Found, ModelError

SAFE = {"trust_remote_code": False}


def from_hub(name: str) -> Found:
    """A model by its folder or id, of the class that its config says, in float32.

    Raises:
        ModelError: transformers can't load it.
    """
    transformers = _transformers()
    with _told(name):
        config = transformers.AutoConfig.from_pretrained(name, **SAFE)
        kind = _class_of(config)
        model, notes = _loaded(kind, name, config=config)
    return Found(name, model, tokenizer=tokenizer_of(name), notes=notes)


def from_gguf(name: str, file: Path) -> Found:
    """A model from a GGUF file, its weights in float32.

    Raises:
        ModelError: transformers can't read it.
    """
    transformers = _transformers()
    with _told(name):
        config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name, **SAFE)
        kind = transformers.AutoModelForCausalLM
        model, notes = _loaded(kind, file.parent, gguf_file=file.name, config=config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **SAFE)
    return Found(name, model, tokenizer=tokenizer, notes=notes)


def tokenizer_of(folder: str | Path) -> Any:
    """The tokenizer of a folder or id, or None where there is none.

    Raises:
        ImportError: transformers is missing.
    """
    transformers = _transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, **SAFE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return None  # transformers says that there is none in many ways


def _class_of(config: Any) -> Any:
    """The class that the checkpoint was saved from."""
    transformers = _transformers()
    names = getattr(config, "architectures", None) or []
    for name in names:
        kind = getattr(transformers, name, None)
        if kind is not None:
            return kind
    return transformers.AutoModel


def _loaded(kind: Any, name: str | Path, **options: Any) -> tuple[Any, tuple[str, ...]]:
    import torch

    model, told = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **SAFE, **options)
    missing = sorted(told["missing_keys"])
    notes: tuple[str, ...] = ()
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        notes = (f"the checkpoint lacks {', '.join(missing[:3])}{more}: these weights are random",)
    return model.eval(), notes


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """What transformers raises, in one sentence."""
    try:
        yield
    except Exception as error:  # it raises whatever its readers of files do
        first = " ".join(str(error).split())
        raise ModelError(f"transformers can't load {name}: {first:.400}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("reading Hugging Face models needs transformers: pip install 'remixer[demo]'") from error
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    return transformers
