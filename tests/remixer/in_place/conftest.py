"""Tiny models of transformers, and what goes inside."""

import pytest
import torch

VOCABULARY = 90
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {**TINY, "num_key_value_heads": 2}
SLIDING = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
NARROW = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 400, "vocab_size": VOCABULARY,
          "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}  # fmt: skip
# The configuration's class, the model's, and options.
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", NARROW),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 8}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**GROUPED, **SLIDING, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 16},
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {**GROUPED, **SLIDING, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "bert": ("BertConfig", "BertModel", TINY),
    "vit": ("ViTConfig", "ViTModel", {**TINY, "image_size": 16, "patch_size": 4}),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4},
    ),
    "t5": (
        "T5Config",
        "T5EncoderModel",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4},
    ),
}


@pytest.fixture(scope="session")
def tiny():
    """A function from a family's name to a new model with random weights, always the same."""
    import transformers

    def build(family, **more):
        config, model, options = FAMILIES[family]
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**options, **more)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
        return made

    return build


def text(rows=2, tokens=24, padded=5, left=True):
    """Ids and a mask; all rows but the last are padded."""
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(ids)
    mask[:-1, slice(padded) if left else slice(tokens - padded, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="session")
def inputs():
    """A function from a family's name to example inputs, of any number of rows and tokens."""

    def of(family="", **sizes):
        return {"pixel_values": torch.randn(2, 3, 16, 16)} if family == "vit" else text(**sizes)

    return of
