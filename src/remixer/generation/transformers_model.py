"""A rewritten decoder as a model of transformers: its `generate` and its pipelines take it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from remixer.generation.decoding import Decoder, State
from remixer.generation.errors import GenerationError

IGNORED = {"position_ids", "cache_position", "return_dict"}  # what `generate` hands over beside, and the decoder counts


class StateCache(Cache):
    """Holds the state of a decoder where transformers expects keys and values.

    Args:
        decoder: whose state it is.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(layers=[])
        self.decoder = decoder
        self.state: State = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens there were."""
        return int(self.state["tokens"]) if self.state else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, as beam search asks for."""
        self.state = self.decoder.reorder(self.state, beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self.reorder_cache(torch.arange(len(self.state["existing"])).repeat_interleave(repeats))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """A state can't go back.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("the state of a rewritten model can't go back to fewer tokens")


class RemixedForCausalLM(PreTrainedModel, GenerationMixin):
    """What `remixer.as_transformers` gives."""

    main_input_name = "input_ids"
    _is_stateful = True  # no way back: what drafts tokens and takes them back is refused
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: Any, model: fx.GraphModule, length: int) -> None:
        super().__init__(copy.deepcopy(config))
        self.remixed, self.length = model, length
        self._built: list[Decoder] = []

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *others: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise GenerationError(
                f"cache_implementation={generation_config.cache_implementation!r} is for keys and values: a rewritten "
                "model keeps the states of its mixers. Leave it out"
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = StateCache(self.decoder)

    @property
    def decoder(self) -> Decoder:
        """Built when it is first needed, and again when the weights were moved or changed."""
        if not self._built or self._built[0].stale:
            self._built = [Decoder(self.remixed, self.length)]
        return self._built[0]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Not here: nothing could load it.

        Raises:
            GenerationError: always.
        """
        raise GenerationError("from_pretrained can't load a rewritten model: save the state_dict of what remix gave")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StateCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits; with a cache, of a prompt those of its last token.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), or (B, past + T).
            past_key_values: of the tokens before.
            use_cache: keep a state to go on from.
            labels: (B, T), for a loss; without a cache.
            logits_to_keep: of how many last tokens; 0 for all.
            others: must be None, or what `generate` hands over beside.

        Raises:
            GenerationError: an input has no meaning here.
        """
        asked = {name for name, value in others.items() if value is not None and value is not False}
        unknown = sorted(asked - IGNORED)
        if unknown:
            raise GenerationError(f"a rewritten model takes no {', '.join(unknown)} here")
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        loss = None
        if labels is not None or not (use_cache or past_key_values is not None):
            past_key_values = None
            logits = self.decoder.whole(input_ids, mask)
            if labels is not None:
                loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        else:
            cache = StateCache(self.decoder) if past_key_values is None else past_key_values
            if not isinstance(cache, StateCache):
                raise GenerationError(
                    f"got a {type(cache).__name__} as past_key_values: a rewritten model keeps the states of its "
                    "mixers. Leave it out, or give what an earlier call gave"
                )
            if cache.state:
                logits, cache.state = cache.decoder.step(input_ids, cache.state, mask)
            else:
                logits, cache.state = cache.decoder.prefill(input_ids, mask)
            past_key_values = cache
        return CausalLMOutputWithPast(loss=loss, logits=logits[:, -logits_to_keep:], past_key_values=past_key_values)
