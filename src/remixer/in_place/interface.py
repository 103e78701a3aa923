"""What transformers calls for attention, and for masks, in a model that has mixers inside.

Both are registered under one name. Of masks only which tokens exist is kept, (B, S), as for flash attention: nothing
that grows with the square of the length is made. A softmax mixer stands for the model's own attention, which is then
called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from remixer.in_place.errors import InPlaceError
from remixer.in_place.record import NAME
from remixer.mixers.base import token_of
from remixer.mixers.masks import added_mask, allowed_keys
from remixer.mixers.spec import AttentionSpec
from remixer.report import Report

FORMS = ("sdpa", "eager")  # of a model's own attention, for which masks can be made here
KEYWORDS = {"sink": "s_aux"}  # operands that the interface hands over by name
OPERANDS = ("query", "key", "value", "padding", *KEYWORDS)
ROOM = 256  # states are made for a multiple of so many tokens, so that what depends on that number is kept


@dataclass(frozen=True)
class InPlace:
    """Held by a model that has mixers inside, as `model.remixed_in_place`. Pickled along, it brings this file with it.

    Attributes:
        report: what was done; None if the model was read from a folder.
    """

    report: Report | None


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """What the attention of a module gives by its mixer.

    Args:
        module: has the mixer.
        query: (B, H, T, D).
        key: (B, G, S, D), also of tokens before those of the query, if there is a cache.
        value: (B, G, S, E).
        attention_mask: (B, S) bool, which tokens exist; None if all do.
        given: scale, dropout and the like.

    Returns:
        (B, T, H, E), and the weights if the model's own attention gives them.

    Raises:
        InPlaceError: the module has no mixer, or the mask is not one that was made here.
        NoStepError: there are tokens before, and the mixer can't go on from their keys and values.
    """
    mixer: Any = getattr(module, "mixer", None)
    if mixer is None:
        raise InPlaceError(
            f"{type(module).__name__} has no mixer: the model was saved with mixers inside. Read it with "
            'remixer.from_pretrained, or without mixers, by attn_implementation="sdpa"'
        )
    if attention_mask is not None and attention_mask.dim() != 2:
        raise InPlaceError(
            f"got a mask of shape {tuple(attention_mask.shape)}: mixers inside a model take an attention_mask of shape "
            "(batch, tokens), which says what exists. remixer.undo puts the model's own attention back"
        )
    if attention_mask is not None and not mixer.spec.padding:
        raise InPlaceError(
            "some tokens are padding, and the model was captured without a mask: give remix an attention_mask among "
            "its inputs"
        )
    T, S = query.shape[2], key.shape[2]
    if mixer.config.name == "softmax":
        form = module.config.remixer["form"]
        return own_attention(module, form)(
            module, query, key, value, own_mask(mixer.spec, form, T, attention_mask, key), **given
        )
    every = {"query": query, "key": key, "value": value, "padding": attention_mask}
    every |= {name: given.get(keyword) for name, keyword in KEYWORDS.items()}
    operands = {name: every[name] for name in mixer.operands}
    mixed = mixer(**operands) if T == S else continued(mixer, operands, T, S)
    return mixed.transpose(1, 2).contiguous(), None


def continued(mixer: Any, operands: dict[str, Tensor | None], tokens: int, keys: int) -> Tensor:
    """(B, H, T, E), of the last T tokens, from the keys and values of all S of them.

    The state is made anew of those before, at a cost that grows with their number as that of softmax does.
    """
    past = keys - tokens
    before = {name: _first(name, each, past) for name, each in operands.items() if name != "query"}
    state = mixer.state_after(-(-keys // ROOM) * ROOM, **before)
    mixed = []
    for t in range(tokens):
        own = {name: token_of(name, each, t if name == "query" else past + t) for name, each in operands.items()}
        one, state = mixer.step(state, **own)
        mixed.append(one)
    return torch.cat(mixed, 2)


def _first(name: str, operand: Tensor | None, tokens: int) -> Tensor | None:
    """An operand of the first keys."""
    dims = {"key": 2, "value": 2, "padding": 1}
    return operand.narrow(dims[name], 0, tokens) if operand is not None and name in dims else operand


def existing(
    *,
    config: Any,
    kv_length: int,
    q_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    **others: Any,
) -> Tensor | None:
    """Which tokens exist: (B, S) bool, or None if all do.

    Args:
        config: of the model, with what masks the mixers were proven for.
        kv_length: S.
        q_length: T.
        q_offset: how many tokens there were before the first query.
        kv_offset: how many there were before the first key.
        mask_function: says which tokens see which.
        attention_mask: (B, kv_offset + S) bool.
        others: of no meaning here.

    Raises:
        InPlaceError: the model asks for another mask than those, or keeps room for keys that aren't there yet.
    """
    told, known = described(mask_function), config.remixer["masks"]
    if told not in known:
        raise InPlaceError(
            f"the model asks for the mask {told}, and its mixers were proven for {' and '.join(known)}. Several "
            "documents in one row, or other masks of one's own, can't be mixed: give an attention_mask of shape "
            "(batch, tokens), and one document a row"
        )
    if "causal" in told and q_offset + q_length != kv_offset + kv_length:
        raise InPlaceError(
            f"a cache with room for {kv_length} tokens holds {int(q_offset + q_length)}: mixers need one that holds "
            "what there is, as transformers' DynamicCache does. Leave cache_implementation out"
        )
    if attention_mask is None:
        return None
    mask = attention_mask[:, -kv_length:]
    if mask.shape[1] != kv_length:
        raise InPlaceError(f"the attention_mask is of {mask.shape[1]} tokens, and there are {kv_length}")
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def described(function: Any) -> str:
    """A mask function in words that tell it from all others: its name, and what it was made with."""
    inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if not callable(function):
        if isinstance(function, (tuple, list)):
            return f"({', '.join(map(described, function))})"
        return f"a tensor of shape {tuple(function.shape)}" if isinstance(function, Tensor) else repr(function)
    name = function.__qualname__.replace(".<locals>", "")
    return f"{name}({', '.join(map(described, inside))})" if inside else name


def own_attention(module: nn.Module, form: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The model's own attention function in one of its forms.

    Raises:
        InPlaceError: its file doesn't have what such files have.
    """
    names = inspect.unwrap(type(module).forward).__globals__
    if not {"ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"} <= names.keys():
        raise InPlaceError(f"where {type(module).__name__} has its own attention from can't be told")
    found: Callable[..., tuple[Tensor, Tensor | None]] = names["ALL_ATTENTION_FUNCTIONS"].get_interface(
        form, names["eager_attention_forward"]
    )
    return found


def own_mask(spec: AttentionSpec, form: str, tokens: int, exist: Tensor | None, key: Tensor) -> Tensor | None:
    """The mask that the model's own attention reads, broadcastable to (B, 1, T, S), or None where it needs none.

    Args:
        spec: of the attention.
        form: of the model's own attention.
        tokens: T.
        exist: (B, S) bool, or None.
        key: (B, G, S, D).
    """
    keys = key.shape[2]
    if not spec.cross:
        spec = replace(spec, alignment="end")
    if form == "eager":
        mask = added_mask(spec, tokens, keys, exist, key)
    elif exist is None and not spec.windowed and (not spec.causal or tokens in (1, keys)):
        return None  # it goes by `is_causal`
    else:
        mask = allowed_keys(spec, tokens, keys, exist, key.device)
    return mask[None, None] if mask is not None and mask.dim() == 2 else mask


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, existing)
