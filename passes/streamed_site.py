"""A mixer as a module of a graph that hands its state in and out, tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from remixer.mixers import Mixer
from remixer.mixers.base import State, token_of
from remixer.mixers.eager import plain_inference


class AtOnce(nn.Module):
    """`Mixer.prefill`, giving the state's entries behind the output.

    Args:
        mixer: of the site.
        length: how many tokens there may be in all.
        entries: the names of what is given, in this order.
    """

    def __init__(self, mixer: Mixer, length: int, entries: list[str]) -> None:
        super().__init__()
        self.mixer, self.length, self.entries = mixer, length, entries

    def forward(self, **operands: Tensor | None) -> tuple[Tensor, ...]:
        """The output, and the entries after these tokens."""
        mixed, state = self.mixer.prefill(self.length, **operands)
        return (mixed, *(state[name] for name in self.entries))


class Step(nn.Module):
    """`Mixer.step`, taking the state's entries by position, and giving the new ones behind the output.

    Several tokens go one after the other if the mixer takes no more at once.

    Args:
        mixer: of the site.
        entries: the names of what is taken and given, in this order.
        lasting: what of the state is always the same.
    """

    def __init__(self, mixer: Mixer, entries: list[str], lasting: State) -> None:
        super().__init__()
        self.mixer, self.entries, self.lasting = mixer, entries, list(lasting)
        for name, tensor in lasting.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, *state: Tensor, **operands: Tensor | None) -> tuple[Tensor, ...]:
        """The output, and the new entries."""
        given = {name: self._own(name, entry) for name, entry in zip(self.entries, state, strict=True)}
        lasting = {name: self.get_buffer(name) for name in self.lasting}
        value = operands["value"]
        assert value is not None
        if self.mixer.steps_several or value.shape[2] == 1:
            mixed, given = self.mixer.step(given | lasting, **operands)
            return (mixed, *(given[name] for name in self.entries))
        each = []
        for t in range(value.shape[2]):
            one = {name: token_of(name, operand, t) for name, operand in operands.items()}
            mixed, given = self.mixer.step(given | lasting, **one)
            each.append(mixed)
        return (torch.cat(each, 2), *(given[name] for name in self.entries))

    def _own(self, name: str, entry: Tensor) -> Tensor:
        """What mixers alike share is copied where a step may write in place: the next one reads it as it was."""
        shared = name in self.mixer.of_tokens and self.mixer.writes_of_tokens
        return entry.clone() if shared and plain_inference(entry) else entry


def lasting_entries(mixer: Mixer, length: int) -> tuple[State, list[str]]:
    """What of a mixer's state never changes, such as coefficients, and the names of all other entries.

    A step hands on the very tensors that it doesn't change; where gradients are on, it writes into none.
    """
    weight = next((each for each in mixer.parameters()), None)
    spec = mixer.spec
    like = torch.zeros((), dtype=spec.dtype, device=None if weight is None else weight.device)
    shapes = {
        "query": (1, spec.heads, 1, spec.head_dim),
        "key": (1, spec.kv_heads, 1, spec.head_dim),
        "value": (1, spec.kv_heads, 1, spec.value_dim),
        "source": (1, 1, spec.source_dim or 1),
        "bias": (spec.heads, 2 * length - 1),
        "sink": (spec.heads,),
    }
    operands = {name: like.new_zeros(shapes[name]) for name in mixer.operands if name in shapes}
    with torch.no_grad():  # a mixer that keeps such entries keeps these
        before = mixer.initial_state(1, length, like)
    with torch.enable_grad():
        _, after = mixer.step(before, **operands)
    lasting = {name: each.detach() for name, each in before.items() if after[name] is each}
    return lasting, sorted(before.keys() - lasting.keys())
