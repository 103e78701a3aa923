"""The keys and values of the tokens before, from which softmax attention goes on: all of them, or a window's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from remixer.mixers.base import State
from remixer.mixers.eager import plain_inference
from remixer.mixers.errors import NoStepError
from remixer.mixers.growing import grown, latest
from remixer.mixers.masks import existing_tokens, near_keys
from remixer.mixers.offset_bias import bias_at, existing_places
from remixer.mixers.spec import AttentionSpec


def empty_cache(spec: AttentionSpec, batch: int, like: Tensor) -> State:
    """The state before the first token.

    Args:
        spec: of the attention.
        batch: B.
        like: gives dtype and device.

    Returns:
        key (B, G, P, D), value (B, G, P, E) and, if keys may not exist, exist (B, P) bool. P is 0, or how far back a
        window reaches.

    Raises:
        NoStepError: queries see tokens to come, or what they see is known for whole sequences only.
    """
    if spec.cross or not spec.causal:
        told = "keys are of another sequence" if spec.cross else "the attention sees tokens to come"
        raise NoStepError(f"'softmax' can't go token by token here: {told}")
    if spec.bias == "dense":
        raise NoStepError("'softmax' can't go token by token here: its mask or bias is known for whole sequences only")
    left = spec.window[0]
    past = left or 0
    state = {
        "key": like.new_zeros(batch, spec.kv_heads, past, spec.head_dim),
        "value": like.new_zeros(batch, spec.kv_heads, past, spec.value_dim),
    }
    if spec.padding or left is not None:
        state["exist"] = like.new_zeros(batch, past, dtype=torch.bool)
    return state


def extended(state: State, key: Tensor, value: Tensor, padding: Tensor | None) -> State:
    """The state with T more tokens: key (B, G, T, D), value (B, G, T, E), padding (B, T) bool or None."""
    new = {"key": grown(state["key"], key), "value": grown(state["value"], value)}
    if "exist" in state:
        new["exist"] = torch.cat([state["exist"], existing_tokens(padding, key)], 1)
    return new


def kept_in_cache(spec: AttentionSpec, state: State) -> State:
    """What tokens to come may see of a state."""
    left = spec.window[0]
    if left is None:
        return state
    first = state["key"].shape[2] - left
    return {
        name: each.narrow(1, first, left) if name == "exist" else latest(each, left) for name, each in state.items()
    }


def seen_in_cache(spec: AttentionSpec, state: State, tokens: int, bias: Tensor | None, like: Tensor) -> Tensor | None:
    """The mask of the last T tokens of a state.

    Args:
        spec: of the attention.
        state: with these tokens.
        tokens: T.
        bias: (H, 2 N - 1), by offset, for N tokens at most; or None.
        like: gives the dtype of a mask that is added.

    Returns:
        Broadcastable to (B, H, T, S), bool or added; None where all are seen.
    """
    S, exist, device = state["key"].shape[2], state.get("exist"), like.device
    if exist is not None and plain_inference(exist) and bool(exist.all()):
        exist = None  # attention without a mask is faster
    mask = None
    if tokens != 1:  # one token sees all that was kept
        mask = near_keys(replace(spec, alignment="end"), tokens, S, device)
    if exist is not None:
        mask = exist[:, None, None] if mask is None else mask & exist[:, None, None]
    if bias is None:
        return mask
    place = torch.arange(S, device=device)[None] if exist is None or not spec.skips_padding else existing_places(exist)
    ahead = place[:, None] - place[:, S - tokens :, None]  # (B or 1, T, S)
    added = bias_at(bias, ahead, (bias.shape[1] + 1) // 2).transpose(0, 1).to(like.dtype)
    return added if mask is None else torch.where(mask, added, torch.finfo(added.dtype).min)
