"""One row of the zoo: a family of models in transformers, as small as it can be, and what attention it has.

What is expected is worked out from the family's configuration and from what is published of its architecture,
never from what remixer says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

Window = tuple[int | None, int | None]
SCALED_QUERY = 1.0  # the scale of an attention whose query, or key, was scaled before their product


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What one attention computes, in the words of `remixer.AttentionSpec`.

    `kept` is a word from the reason why it can't be expressed as such; the rest then says nothing.
    """

    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    scale: float = 1.0
    causal: bool = False
    window: Window = (None, None)
    padding: bool = False
    pads_queries: bool = False
    bias: str = "none"
    skips_padding: bool = False
    softcap: float | None = None
    sink: bool = False
    cross: bool = False
    kept: str = ""


Expected = Callable[[Any], list[Attention]]


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: its name, with the variant if there are several.
        config: name of its configuration class.
        model: name of its model class.
        options: of the configuration.
        attentions: from the configuration to what is expected, in the order of execution.
        inputs: what it reads; see `inputs.py`.
        shortest: least length that the model itself takes.
        one_batch: its own code goes image by image, so that a graph holds at the batch it was captured with; any
            other must be refused.
        refused: for forms whose graph, as torch.export traces it, is not the model: a word from the error.
        quick: part of the default suite.
    """

    name: str
    config: str
    model: str
    options: Mapping[str, Any]
    attentions: Expected
    inputs: str = "text"
    shortest: int = 1
    one_batch: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False

    @property
    def exists(self) -> bool:
        """Whether this version of transformers has it."""
        return hasattr(transformers, self.config) and hasattr(transformers, self.model)

    @property
    def forms(self) -> tuple[str, ...]:
        """The spellings of attention that the class has."""
        return ("sdpa", "eager") if self.exists and getattr(transformers, self.model)._supports_sdpa else ("eager",)

    def build(self, form: str) -> nn.Module:
        """The model, its weights random and large enough that attention is far from uniform."""
        config = getattr(transformers, self.config)(**self.options)
        without_cache(config)
        model = getattr(transformers, self.model)._from_config(config, attn_implementation=form).float().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model


def without_cache(config: Any) -> None:
    """Switch off the cache of keys and values, which no graph can give."""
    for part in [config, *vars(config).values()]:
        if isinstance(part, transformers.PretrainedConfig):
            part.use_cache = False


def attention(config: Any, layer: int = 0, **given: Any) -> Attention:
    """One attention from the configuration's usual fields; what is given counts before them.

    Given values may be functions of the configuration and the number of the layer.
    """
    said = {name: value(config, layer) if callable(value) else value for name, value in given.items()}
    heads = said.setdefault("heads", getattr(config, "num_attention_heads", 0))
    said.setdefault("kv_heads", getattr(config, "num_key_value_heads", None) or heads)
    size = said.get("head_dim") or getattr(config, "head_dim", None) or config.hidden_size // heads
    said["head_dim"] = size
    said.setdefault("value_dim", size)
    said.setdefault("scale", size**-0.5)
    return Attention(**said)


def layers(*, count: str = "num_hidden_layers", part: str = "", **given: Any) -> Expected:
    """One attention a layer, all alike but for what is given as functions.

    Args:
        count: the field that says how many layers there are.
        part: the field with the configuration of this part of the model.
        given: see `attention`.
    """

    def expected(config: Any) -> list[Attention]:
        own = getattr(config, part) if part else config
        return [attention(own, layer, **given) for layer in range(getattr(own, count))]

    return expected


def unreadable(word: str, *, count: str = "num_hidden_layers", each: int = 1) -> Expected:
    """Attentions, so many a layer, that no softmax(scale Q K^T + mask) V expresses."""
    return lambda config: [Attention(kept=word)] * (each * getattr(config, count))


def nothing(config: Any) -> list[Attention]:
    """No attention at all."""
    return []


def together(*parts: Expected) -> Expected:
    """Several parts, one after the other."""
    return lambda config: [one for part in parts for one in part(config)]


def encoder_decoder(
    *,
    encoder: str = "encoder_layers",
    decoder: str = "decoder_layers",
    own: Mapping[str, Any] | None = None,
    causal: Mapping[str, Any] | None = None,
    cross: Mapping[str, Any] | None = None,
    **given: Any,
) -> Expected:
    """Encoder layers, then decoder layers of a causal self-attention and a cross-attention each.

    Args:
        encoder: the field with the number of encoder layers.
        decoder: the field with that of decoder layers.
        own: further facts about the encoder's attention.
        causal: about the decoder's self-attention.
        cross: about its cross-attention.
        given: about all of them.
    """

    def expected(config: Any) -> list[Attention]:
        found = [attention(config, n, **{**given, **(own or {})}) for n in range(getattr(config, encoder))]
        heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
        reading = {"heads": heads, **given, "padding": False}
        for n in range(getattr(config, decoder)):
            found.append(attention(config, n, **{**reading, "causal": True, **(causal or {})}))
            crossing = {**reading, "bias": "none", "padding": given.get("padding", False), "cross": True}
            found.append(attention(config, n, **{**crossing, **(cross or {})}))
        return found

    return expected


def sliding(config: Any, layer: int) -> Window:
    """The window of a causal attention, by the configuration's type of the layer."""
    return (config.sliding_window - 1, 0) if config.layer_types[layer].startswith("sliding") else (None, 0)


def always_sliding(config: Any, layer: int) -> Window:
    """The window of a causal attention that slides in every layer."""
    return (config.sliding_window - 1, 0)
