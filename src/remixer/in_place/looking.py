"""A look at how a model of transformers computes its attention: which modules call the interface, and with what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from remixer.in_place.interface import FORMS, KEYWORDS, described, own_attention
from remixer.in_place.record import configs_of
from remixer.rewrite.agreement import NotRunError, run
from remixer.rewrite.inputs import Call

NAME = "remixer looks"


@dataclass
class Seen:
    """One call of the attention interface.

    Attributes:
        module: that made it.
        operands: the tensors that it handed over.
        masked: whether there was a mask, and it was made by the interface for masks.
    """

    module: nn.Module
    operands: dict[str, Tensor]
    masked: bool | None


@dataclass
class Look:
    """What was seen in one run.

    Attributes:
        forms: of each config, by its id, the form of the model's own attention.
        calls: of the attention interface, in their order.
        masks: that were asked for, in words.
        raised: what the model raised, or None.
    """

    forms: dict[int, str]
    calls: list[Seen] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    raised: str | None = None

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> Any:
        """The model's own attention, and a note of what it was given."""
        operands = {"query": query, "key": key, "value": value}
        operands |= {name: given[word] for name, word in KEYWORDS.items() if isinstance(given.get(word), Tensor)}
        made = any(attention_mask is one for one in self.made)
        self.calls.append(Seen(module, operands, None if attention_mask is None else made))
        own = own_attention(module, self.forms[id(module.config)])
        return own(module, query, key, value, attention_mask, **given)

    def mask(self, config: Any, **given: Any) -> Any:
        """The model's own mask, and a note of which it is."""
        self.masks.append(described(given["mask_function"]))
        mask = ALL_MASK_ATTENTION_FUNCTIONS[self.forms[id(config)]](config=config, **given)
        if isinstance(mask, Tensor):
            self.made.append(mask)
        return mask


_LOOK: ContextVar[Look] = ContextVar("look")


def _attend(module: nn.Module, *operands: Any, **given: Any) -> Any:
    return _LOOK.get().attend(module, *operands, **given)


def _mask(*, config: Any, **given: Any) -> Any:
    return _LOOK.get().mask(config, **given)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)


def look(model: nn.Module, call: Call) -> Look:
    """Run a model in eval, without a cache, and see what its attention modules hand over."""
    configs = {id(config): config for _, _, config in configs_of(model) if config._attn_implementation in FORMS}
    seen = Look({key: config._attn_implementation for key, config in configs.items()})
    token = _LOOK.set(seen)
    try:
        with _named(list(configs.values())):
            run(model, call)
    except NotRunError as error:
        seen.raised = str(error)
    finally:
        _LOOK.reset(token)
    return seen


@contextlib.contextmanager
def _named(configs: list[Any]) -> Iterator[None]:
    """The configs asking for this file's functions for a while."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, form in zip(configs, before, strict=True):
            config._attn_implementation_internal = form
