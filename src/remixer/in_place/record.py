"""What a model with mixers inside knows of them, in its config, as JSON can hold it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from remixer.mixers import AttentionSpec, Mixer, MixerConfig, mixer_of

NAME = "remixer"  # of the attention, for transformers


def configs_of(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Every module's configs of transformers: the module, the attribute, the config."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if hasattr(value, "_attn_implementation_internal")
    ]


@dataclass(frozen=True)
class Entry:
    """A mixer inside: its attention and its options."""

    spec: AttentionSpec
    config: MixerConfig

    def mixer(self) -> Mixer:
        """A mixer of these options for that attention, its weights new."""
        return mixer_of(self.config).from_attention(self.spec, self.config)


@dataclass(frozen=True)
class Inside:
    """All that the config says.

    Attributes:
        form: of the model's own attention.
        masks: that it may ask for.
        mixers: by the path of the attention.
    """

    form: str
    masks: list[str]
    mixers: dict[str, Entry]


def entry_of(mixer: Mixer) -> dict[str, Any]:
    """A mixer's attention and options."""
    spec = asdict(mixer.spec)
    return {"spec": {**spec, "dtype": str(mixer.spec.dtype).removeprefix("torch.")}, "config": mixer.config.to_dict()}
