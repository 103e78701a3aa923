"""What streaming.py measures: decoders, their states, and how to set a state to any number of tokens at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

import remixer
from remixer import Decoder, LongShort, Toeplitz
from remixer.mixers import Mixer, MixerConfig, SoftmaxConfig
from remixer.passes.sites import sites_of
from remixer.rewrite.program import Program

State = dict[str, Tensor]
MIXERS: dict[str, MixerConfig] = {
    "softmax": SoftmaxConfig(),
    "long_short": LongShort(),
    'long_short(memory="dyadic")': LongShort(memory="dyadic"),
    "toeplitz": Toeplitz(),
}


def rewritten(model: Any, mixer: MixerConfig) -> Any:
    """A decoder of transformers with all its attentions replaced, captured with a mask and positions."""
    ids = torch.randint(1, model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    places = torch.arange(24).expand(2, -1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
    return remixer.remix(model, mixer, inputs, strict=True)


def held_bytes(state: State) -> int:
    """What a state holds."""
    return sum(tensor.nbytes for tensor in state.values())


def kept_of(mixer: Mixer, tokens: int, length: int) -> State:
    """The state of one mixer after so many random tokens, of `length` at most."""
    spec = mixer.spec
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, spec.kv_heads, tokens, spec.head_dim, generator=generator)
    value = torch.randn(1, spec.kv_heads, tokens, spec.value_dim, generator=generator)
    padding = torch.ones(1, tokens, dtype=torch.bool)
    with torch.no_grad():
        return mixer.state_after(mixer.remembers(length), key=key, value=value, padding=padding)


def filled(decoder: Decoder, tokens: int) -> State:
    """A decoder's state as after so many tokens, whose keys and values are random."""
    _, state = decoder.prefill(torch.ones(1, 1, dtype=torch.int64))
    for site in sites_of(Program.of(decoder.model)):
        after = kept_of(site.mixer, tokens, decoder.length)
        state |= {f"{site.name}.{name}": each for name, each in after.items() if f"{site.name}.{name}" in state}
    for name in ("tokens", "existing", "position"):
        if name in state:
            state[name] = torch.full_like(state[name], tokens)
    return state


def cache_of(model: Any, tokens: int) -> Any:
    """A cache of transformers that holds so many random keys and values."""
    from transformers import DynamicCache

    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        shape = (1, config.num_key_value_heads, tokens, size)
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    return cache


def seconds_a_token(steps: Iterable[tuple[str, Callable[[], object]]], rounds: int) -> dict[str, float]:
    """The least time of each step, taken in turns, so that whatever else runs meets all of them."""
    best: dict[str, float] = {}
    calls = list(steps)
    for _ in range(rounds):
        for name, call in calls:
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
            best[name] = min(took, best.get(name, took))
    return best
