"""`as_transformers`: hands a rewritten decoder to what works with models of transformers."""

from __future__ import annotations

from typing import Any

from torch import fx

from remixer.generation.errors import GenerationError


def as_transformers(model: fx.GraphModule, config: Any, *, length: int, generation_config: Any = None) -> Any:
    """A rewritten decoder as a `PreTrainedModel` that transformers' `generate` and text-generation pipelines take.

    Its cache is the decoder's state. Greedy decoding, sampling and beam search work; what takes tokens back, such as
    assisted decoding, is refused.

    Args:
        model: what `remixer.remix` gave, see `Decoder`; it is not copied.
        config: of the model that it was made from.
        length: how many tokens there may be in all, prompt included.
        generation_config: of the model that it was made from, or None for what its config says.

    Returns:
        The model; its `decoder` is built when it is first needed.

    Raises:
        GenerationError: transformers isn't installed, or the model is none that remixer made.
    """
    try:
        from remixer.generation.transformers_model import RemixedForCausalLM
    except ImportError as error:
        raise GenerationError(f"as_transformers needs transformers: {error}") from error
    if not (isinstance(model, fx.GraphModule) and "program" in model.meta):
        raise GenerationError(f"as_transformers takes what remixer.remix gave, got {type(model).__name__}")
    adapted = RemixedForCausalLM(config, model, length).eval()
    if generation_config is not None:
        adapted.generation_config = generation_config
    return adapted
