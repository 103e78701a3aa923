"""What a model of transformers may take, by its config: texts, images, sound, and what these come with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SPECIAL = ("pad", "bos", "eos", "sep", "cls", "mask", "decoder_start", "unk")


def from_config(model: nn.Module, tokenizer: Any, batch: int, length: int) -> Iterator[Mapping[str, Tensor]]:
    """Inputs that the model may take, the likeliest first.

    Args:
        model: of transformers.
        tokenizer: of the model, which names what comes with the token ids; or None.
        batch: rows.
        length: tokens, or what makes about as many.
    """
    names, config = inspect.signature(model.forward).parameters, model.config
    kinds = {
        "input_ids": lambda: text(config, tokenizer, batch, length),
        "pixel_values": lambda: image(config, batch),
        "input_values": lambda: waveform(config, batch, length),
        "input_features": lambda: spectrum(config, batch, length),
    }
    main: Any = model.main_input_name
    order = [main, *(name for name in kinds if name != main)]
    parts = [kinds[name]() for name in order if name in kinds and name in names]
    known = [{name: value for name, value in part.items() if name in names} for part in parts if part]
    decoded = _decoded(config, tokenizer, batch, length) if "decoder_input_ids" in names else {}
    for several in range(1, len(known) + 1):
        together = {name: value for part in known[:several] for name, value in part.items()}
        if decoded:
            yield {**together, **decoded}
        yield together


def text(config: Any, tokenizer: Any, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids (B, T), none of them a special one, and what the tokenizer gives beside."""
    own = config.get_text_config()
    vocabulary = getattr(own, "vocab_size", None)
    if not vocabulary:
        return {}
    longest = getattr(own, "max_position_embeddings", None)
    length = min(length, longest) if isinstance(longest, int) and longest > 0 else length
    special = {getattr(own, f"{name}_token_id", None) for name in _SPECIAL}
    ids = torch.tensor([id for id in range(min(vocabulary, 4096)) if id not in special] or [0])
    chosen = torch.randint(0, len(ids), (batch, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(batch, length, dtype=torch.int64)
    if batch > 1:
        mask[1, length - length // 3 :] = 0  # a mask that hides nothing may be left out by the model
    found = {"input_ids": ids[chosen], "attention_mask": mask}
    if tokenizer is not None and "token_type_ids" in tokenizer.model_input_names:
        found["token_type_ids"] = torch.zeros(batch, length, dtype=torch.int64)
    return found


def _decoded(config: Any, tokenizer: Any, batch: int, length: int) -> dict[str, Tensor]:
    if not getattr(config, "is_encoder_decoder", False):
        return {}
    given = text(config, tokenizer, batch, length // 2 + 2, seed=1)
    return {"decoder_input_ids": given["input_ids"]} if given else {}


def image(config: Any, batch: int) -> dict[str, Tensor]:
    """Images (B, channels, height, width) of the size that the model was made for."""
    own = getattr(config, "vision_config", config)
    size = getattr(own, "image_size", None)
    if size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return {"pixel_values": _numbers(batch, getattr(own, "num_channels", 3), height, width)}


def waveform(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Sound as samples (B, samples), or as one image of frames and bands."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return {"input_values": _numbers(batch, config.max_length, config.num_mel_bins)}
    strides = getattr(config, "conv_stride", None)
    if not strides:
        return {}
    samples = math.prod(strides) * (length + 2)
    found = {"input_values": _numbers(batch, samples)}
    if getattr(config, "feat_extract_norm", "") == "layer":  # the others were trained without a mask
        found["attention_mask"] = torch.ones(batch, samples, dtype=torch.int64)
    return found


def spectrum(config: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Sound as frames: (B, bands, frames) of one length, or (B, frames, bands)."""
    bands = getattr(config, "feature_projection_input_dim", None) or getattr(config, "input_feat_per_channel", None)
    if bands is not None:
        frames = 4 * (length + 2)
        bands *= getattr(config, "input_channels", 1)
        return {
            "input_features": _numbers(batch, frames, bands),
            "attention_mask": torch.ones(batch, frames, dtype=torch.int64),
        }
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        return {"input_features": _numbers(batch, config.num_mel_bins, 2 * config.max_source_positions)}
    return {}


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
