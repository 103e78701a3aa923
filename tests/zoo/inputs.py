"""Example inputs of every kind that the zoo's families read, at any batch, length and padding."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """How large an example is, and at which side its second row is padded ("right", "left" or "none")."""

    rows: int
    length: int
    side: str = "none"


@dataclass(frozen=True)
class Example:
    """Inputs, and which tokens of outputs of some length exist."""

    kwargs: dict[str, Any]
    exist: dict[int, Tensor] = field(default_factory=dict)


CAPTURE = Size(2, 12, "right")
UNSEEN = (Size(3, 19, "right"), Size(2, 33, "left"), Size(1, 7), Size(1, 1))
PIXELS = 32


def existing(size: Size) -> Tensor:
    """(B, T) int64: 1 where a token exists."""
    mask = torch.ones(size.rows, size.length, dtype=torch.int64)
    missing = size.length // 3
    if size.rows > 1 and missing:
        if size.side == "right":
            mask[1, size.length - missing :] = 0
        elif size.side == "left":
            mask[1, :missing] = 0
    return mask


def tokens(rows: int, length: int, seed: int = 0, most: int = 100) -> Tensor:
    """(B, T) ids, none of them a special one."""
    generator = torch.Generator().manual_seed(1000 * rows + length + seed)
    return torch.randint(5, most, (rows, length), generator=generator)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def text(model: nn.Module, size: Size) -> Example:
    mask = existing(size)
    ids = tokens(size.rows, size.length)
    return Example({"input_ids": ids, "attention_mask": mask}, {size.length: mask.bool()})


def text_alone(model: nn.Module, size: Size) -> Example:
    return Example({"input_ids": tokens(size.rows, size.length)})


def text_with_boxes(model: nn.Module, size: Size) -> Example:
    """Text laid out on a page: left, top, right, bottom of each word."""
    example = text(model, size)
    corners = tokens(size.rows, 2 * size.length, most=40).reshape(size.rows, size.length, 2)
    return Example({**example.kwargs, "bbox": torch.cat([corners, corners + 7], -1)}, example.exist)


def text_with_polygons(model: nn.Module, size: Size) -> Example:
    """Text laid out on a page: four corners of each word, between 0 and 1."""
    example = text(model, size)
    return Example({**example.kwargs, "bbox": numbers(size.rows, size.length, 8).sigmoid()}, example.exist)


def text_to_text(model: nn.Module, size: Size) -> Example:
    example = text(model, size)
    decoded = tokens(size.rows, size.length // 2 + 2, seed=1)
    return Example({**example.kwargs, "decoder_input_ids": decoded}, example.exist)


def image(model: nn.Module, size: Size) -> Example:
    return Example({"pixel_values": numbers(size.rows, 3, PIXELS, PIXELS)})


def image_in_patches(model: nn.Module, size: Size) -> Example:
    """Images of different shapes as rows of patches."""
    mask = existing(Size(size.rows, 16, size.side if size.side == "none" else "right"))
    patches, shapes = numbers(size.rows, 16, 3 * 8 * 8), torch.tensor([[4, 4]] * size.rows)
    return Example({"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}, {16: mask.bool()})


def video(model: nn.Module, size: Size) -> Example:
    return Example({"pixel_values": numbers(size.rows, 4, 3, PIXELS, PIXELS)})


def waveform(model: nn.Module, size: Size) -> Example:
    """Sound as samples; padding at the left is unknown to these models."""
    samples = 8 * (size.length + 2) + 3
    mask = existing(Size(size.rows, samples, size.side if size.side == "none" else "right"))
    kwargs = {"input_values": numbers(size.rows, samples), "attention_mask": mask}
    length = int(model._get_feat_extract_output_lengths(samples))
    return Example(kwargs, {length: model._get_feature_vector_attention_mask(length, mask).bool()})


def long_waveform_to_text(model: nn.Module, size: Size) -> Example:
    """Sound as samples, of which each token takes hundreds, text out."""
    sound = numbers(size.rows, 384 * (size.length + 2) + 127)
    return Example({"input_values": sound, "decoder_input_ids": tokens(size.rows, size.length // 2 + 2)})


def spectrum(model: nn.Module, size: Size) -> Example:
    """Sound as frames (B, T, bands) of any length."""
    frames = 4 * (size.length + 2)
    mask = existing(Size(size.rows, frames, size.side if size.side == "none" else "right"))
    return Example({"input_features": numbers(size.rows, frames, 16), "attention_mask": mask}, {frames: mask.bool()})


def spectrum_to_text(model: nn.Module, size: Size) -> Example:
    """Sound as frames (B, T, bands), text out."""
    example = spectrum(model, size)
    return Example({**example.kwargs, "decoder_input_ids": tokens(size.rows, size.length // 2 + 2)})


def fixed_spectrum(model: nn.Module, size: Size) -> Example:
    """Sound as (B, bands, frames) of the one length that the model takes, text out."""
    frames = 2 * model.config.max_source_positions
    features = numbers(size.rows, model.config.num_mel_bins, frames)
    return Example({"input_features": features, "decoder_input_ids": tokens(size.rows, size.length // 2 + 2)})


def spectrogram(model: nn.Module, size: Size) -> Example:
    """Sound as an image of frames and bands, of one size."""
    return Example({"input_values": numbers(size.rows, model.config.max_length, model.config.num_mel_bins)})


def series(model: nn.Module, size: Size) -> Example:
    """A time series of one length and number of channels."""
    config = model.config
    return Example({"past_values": numbers(size.rows, config.context_length, config.num_input_channels)})


def text_and_image(model: nn.Module, size: Size) -> Example:
    example = text(model, size)
    return Example({**example.kwargs, **image(model, size).kwargs}, example.exist)


KINDS: dict[str, Callable[[nn.Module, Size], Example]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        text,
        text_alone,
        text_with_boxes,
        text_with_polygons,
        text_to_text,
        image,
        image_in_patches,
        video,
        waveform,
        long_waveform_to_text,
        spectrum,
        spectrum_to_text,
        fixed_spectrum,
        spectrogram,
        series,
        text_and_image,
    )
}
