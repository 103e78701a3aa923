"""The Long-Short attention through FlexAttention: one fused kernel on GPUs, which skips what no query sees.

Every query scores the columns [summaries; sinks; unused; tokens] of its sequence, all samples' in their order; a block
mask says which blocks of 128 queries and 128 columns have to be looked at, and which of these as a whole; of the others
a mask says which scores count. What doesn't exist is a matter of scores. Nothing is copied into tiles: beside queries,
keys, values and the output there are (B, H, T) and (B, columns) tables of what is added to scores, and those of the
block mask, of (T / 128)^2 integers. Without a GPU, FlexAttention gives the same numbers by all scores.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from remixer.mixers.long_short.block_scores import Mask, Tables, mask_of, score_of, tables_without_padding
from remixer.mixers.long_short.column_blocks import BLOCK, Layout, blocks_of, layout_of
from remixer.mixers.long_short.sight import Sight, Tokens
from remixer.mixers.long_short.whole import Whole, kept

HEAD_SIZES = (16, 32, 64, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def usable(query: Tensor, value: Tensor, offsets: Tensor | None, dropout: float) -> bool:
    """Whether the fused kernel takes these operands here: on a GPU of compute capability 8.0 at least, see `fits`."""
    if query.device.type != "cuda" or torch.compiler.is_compiling() or type(query) is not Tensor:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(query) or not fits(query, value, offsets, dropout):
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def fits(query: Tensor, value: Tensor, offsets: Tensor | None, dropout: float) -> bool:
    """Whether the fused kernel takes such operands; the tiled form takes all.

    Args:
        query: (B, H, T, D) in one of DTYPES, T being a block at least and D one of HEAD_SIZES.
        value: (B, G, S, E), E being one of HEAD_SIZES.
        offsets: None, since it knows no bias by offset.
        dropout: 0, since it drops no weights.
    """
    sizes = query.shape[3] in HEAD_SIZES and value.shape[3] in HEAD_SIZES
    return sizes and query.dtype in DTYPES and query.shape[2] >= BLOCK and offsets is None and dropout == 0.0


def mix_by_blocks(
    query: Tensor, keys: Tokens, values: Tokens, sight: Sight, added: Tensor | None, *, masked: bool
) -> Tensor:
    """The same numbers as `mix_at_once`, which explains the arguments, in one call of FlexAttention.

    Returns:
        (B, H, T, E); 0 for a query that sees nothing.
    """
    attend = _compiled if query.device.type == "cuda" else _flex_attention()
    whole, samples, dtype = Whole.of(sight), query.shape[0], query.dtype
    spec, layout = whole.spec, layout_of(whole)
    tables = Tables.of(sight, samples, dtype) if masked else tables_without_padding(whole, samples, dtype)
    mixed = attend(
        query,
        joined(keys, layout).to(dtype),
        joined(values, layout).to(dtype),
        score_mod=score_of(whole, tables, added, samples),
        block_mask=_block_mask(whole, mask_of(whole, tables.positions)),
        scale=spec.scale,
        enable_gqa=spec.groups > 1,
    )
    return mixed.to(values.near.dtype)


def joined(tokens: Tokens, layout: Layout) -> Tensor:
    """Keys or values of all columns, (B, G, columns, D); what is unused is 0."""
    out = F.pad(tokens.near, (0, 0, layout.first, 0))  # faster than to concatenate, which copies number by number
    if tokens.far is not None:
        out[:, :, : layout.summaries] = tokens.far
    if tokens.sinks is not None:
        out[:, :, layout.summaries : layout.summaries + layout.sinks] = tokens.sinks
    return out


def _block_mask(whole: Whole, mask: Mask) -> Any:
    block_mask = copy.copy(_blocks(whole))
    block_mask.mask_mod = mask
    return block_mask


@kept
def _blocks(whole: Whole) -> Any:
    """A BlockMask that lacks its mask; kept between calls."""
    from torch.nn.attention.flex_attention import BlockMask

    lengths = (whole.tokens, layout_of(whole).columns)
    return BlockMask.from_kv_blocks(*blocks_of(whole), BLOCK_SIZE=BLOCK, seq_lengths=lengths)


def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


def _compiled(*operands: Any, **options: Any) -> Tensor:
    """FlexAttention as one kernel. All its variants come from one function: more than are compiled by default."""
    with torch._dynamo.config.patch(recompile_limit=128):
        return _compile()(*operands, **options)


@functools.cache
def _compile() -> Callable[..., Tensor]:
    """Compiled at the first call, and for any length at the second; in one graph, or all scores would be made."""
    return torch.compile(_flex_attention(), fullgraph=True)
