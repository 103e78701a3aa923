"""Decoders of text."""

from typing import Any

from encoders import TINY
from family import SCALED_QUERY, Attention, Family, always_sliding, attention, layers, sliding

GROUPED = {**TINY, "num_key_value_heads": 2}
SHAPED = {**GROUPED, "head_dim": 16}
OLD = {
    "vocab_size": 100,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    **TINY,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {**LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
            "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1}  # fmt: skip


def causal(**given: Any) -> Any:
    """Every layer causal and padded, which is what most decoders are."""
    return layers(causal=True, padding=True, **given)


def llama_like(name: str, prefix: str, quick: bool = False, **options: Any) -> Family:
    """A family that differs from Llama in nothing that concerns attention; two query heads share a key head."""
    return Family(name, f"{prefix}Config", f"{prefix}Model", {**GROUPED, **options}, causal(), quick=quick)


def latent(config: Any) -> list[Attention]:
    """DeepSeek's latent attention, in which keys have a part with positions and a part without, values neither."""
    size = config.qk_nope_head_dim + config.qk_rope_head_dim
    one = attention(config, kv_heads=config.num_attention_heads, head_dim=size, value_dim=config.v_head_dim,
                    scale=size**-0.5, causal=True, padding=True)  # fmt: skip
    return [one] * config.num_hidden_layers


def differential(config: Any) -> list[Attention]:
    """Differential attention: pairs of heads share the values of both, which are read in two calls."""
    one = attention(config, causal=True, padding=True)
    return [one] * (2 * config.num_hidden_layers)


FAMILIES = (
    Family("gpt2", "GPT2Config", "GPT2Model", OLD, causal(), quick=True),
    Family("gpt2 upcast", "GPT2Config", "GPT2Model", {**OLD, "reorder_and_upcast_attn": True}, causal()),
    Family("gpt2 scaled by layer", "GPT2Config", "GPT2Model", {**OLD, "scale_attn_by_inverse_layer_idx": True},
           causal(scale=lambda config, layer: 0.25 / (layer + 1))),
    Family("gpt-neo", "GPTNeoConfig", "GPTNeoModel",
           {**TINY, "num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]]},
           causal(scale=1.0, window=lambda config, layer:
                  (config.window_size - 1, 0) if config.attention_layers[layer] == "local" else (None, 0))),
    Family("gpt-neox", "GPTNeoXConfig", "GPTNeoXModel", TINY, causal()),
    Family("gpt-neox-japanese", "GPTNeoXJapaneseConfig", "GPTNeoXJapaneseModel", TINY, causal()),
    Family("gptj", "GPTJConfig", "GPTJModel", {**OLD, "rotary_dim": 8}, causal()),
    Family("codegen", "CodeGenConfig", "CodeGenModel", {**OLD, "rotary_dim": 8}, causal()),
    Family("gpt-bigcode", "GPTBigCodeConfig", "GPTBigCodeModel", OLD, causal(kv_heads=1)),
    Family("gpt-bigcode multi-head", "GPTBigCodeConfig", "GPTBigCodeModel", {**OLD, "multi_query": False}, causal()),
    Family("openai-gpt", "OpenAIGPTConfig", "OpenAIGPTModel", OLD, causal()),
    Family("ctrl", "CTRLConfig", "CTRLModel", {**OLD, "dff": 128}, causal()),
    Family("opt", "OPTConfig", "OPTModel", {**TINY, "ffn_dim": 128}, causal(scale=SCALED_QUERY)),
    Family("xglm", "XGLMConfig", "XGLMModel",
           {"vocab_size": 100, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128,
            "max_position_embeddings": 128},
           causal(scale=SCALED_QUERY)),
    Family("biogpt", "BioGptConfig", "BioGptModel", TINY, causal()),
    Family("bloom", "BloomConfig", "BloomModel", {"vocab_size": 100, "hidden_size": 64, "n_layer": 2, "n_head": 4},
           causal(bias="offset", skips_padding=True), quick=True),
    Family("bloom of 6 heads", "BloomConfig", "BloomModel",
           {"vocab_size": 100, "hidden_size": 96, "n_layer": 2, "n_head": 6},
           causal(bias="offset", skips_padding=True)),
    Family("mpt", "MptConfig", "MptModel", {"vocab_size": 100, "d_model": 64, "n_layers": 2, "n_heads": 4},
           causal(bias="offset")),
    Family("falcon", "FalconConfig", "FalconModel", TINY, causal(kv_heads=1)),
    Family("falcon grouped", "FalconConfig", "FalconModel",
           {**TINY, "new_decoder_architecture": True, "num_kv_heads": 2}, causal(kv_heads=2)),
    Family("falcon alibi", "FalconConfig", "FalconModel", {**TINY, "alibi": True, "multi_query": False, "bias": True},
           causal(bias="dense")),  # its slopes are rounded to half precision, which no line by offset is
    llama_like("llama", "Llama", quick=True),
    llama_like("llama of one key head", "Llama", num_key_value_heads=1),
    llama_like("llama of four key heads", "Llama", num_key_value_heads=4),
    Family("llama without padding", "LlamaConfig", "LlamaModel", GROUPED, layers(causal=True), "text alone"),
    Family("mistral", "MistralConfig", "MistralModel", {**GROUPED, "sliding_window": 8},
           causal(window=always_sliding)),
    llama_like("mistral without window", "Mistral", sliding_window=None),
    Family("ministral", "MinistralConfig", "MinistralModel", {**SHAPED, **SLIDING}, causal(window=sliding)),
    llama_like("mixtral", "Mixtral", **EXPERTS),
    Family("mixtral with window", "MixtralConfig", "MixtralModel", {**GROUPED, **EXPERTS, "sliding_window": 8},
           causal(window=always_sliding)),
    llama_like("qwen2", "Qwen2"),
    Family("qwen2 with windows", "Qwen2Config", "Qwen2Model",
           {**GROUPED, **SLIDING, "use_sliding_window": True}, causal(window=sliding)),
    llama_like("qwen2-moe", "Qwen2Moe", **EXPERTS, shared_expert_intermediate_size=32),
    llama_like("qwen3", "Qwen3", head_dim=16),
    llama_like("qwen3-moe", "Qwen3Moe", head_dim=16, **EXPERTS),
    llama_like("gemma", "Gemma", head_dim=32),
    Family("gemma2", "Gemma2Config", "Gemma2Model",
           {**SHAPED, **SLIDING, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 20.0},
           causal(window=sliding, scale=lambda config, _: config.query_pre_attn_scalar**-0.5,
                  softcap=lambda config, _: config.attn_logit_softcapping)),
    Family("gemma3", "Gemma3TextConfig", "Gemma3TextModel", {**SHAPED, **SLIDING, "query_pre_attn_scalar": 64},
           causal(window=sliding, scale=lambda config, _: config.query_pre_attn_scalar**-0.5), quick=True),
    Family("vaultgemma", "VaultGemmaConfig", "VaultGemmaModel", {**SHAPED, **SLIDING, "query_pre_attn_scalar": 64},
           causal(window=sliding, scale=lambda config, _: config.query_pre_attn_scalar**-0.5,
                  softcap=lambda config, _: config.attn_logit_softcapping)),
    llama_like("phi", "Phi", partial_rotary_factor=0.5),
    llama_like("phi3", "Phi3"),
    Family("phi3 with window", "Phi3Config", "Phi3Model", {**GROUPED, "sliding_window": 8},
           causal(window=always_sliding)),
    llama_like("phimoe", "Phimoe", **EXPERTS),
    llama_like("stablelm", "StableLm"),
    llama_like("starcoder2", "Starcoder2", sliding_window=None),
    Family("starcoder2 with window", "Starcoder2Config", "Starcoder2Model", {**GROUPED, "sliding_window": 8},
           causal(window=always_sliding)),
    llama_like("olmo", "Olmo"),
    llama_like("olmo2", "Olmo2"),
    Family("olmo3", "Olmo3Config", "Olmo3Model", {**GROUPED, **SLIDING}, causal(window=sliding)),
    llama_like("olmoe", "Olmoe", **EXPERTS),
    llama_like("cohere", "Cohere"),
    Family("cohere2", "Cohere2Config", "Cohere2Model", {**GROUPED, **SLIDING}, causal(window=sliding)),
    Family("granite", "GraniteConfig", "GraniteModel", {**GROUPED, "attention_multiplier": 0.1}, causal(scale=0.1)),
    Family("granitemoe", "GraniteMoeConfig", "GraniteMoeModel", {**GROUPED, **EXPERTS, "attention_multiplier": 0.1},
           causal(scale=0.1)),
    llama_like("nemotron", "Nemotron"),
    Family("persimmon", "PersimmonConfig", "PersimmonModel", TINY, causal()),
    llama_like("smollm3", "SmolLM3"),
    llama_like("glm", "Glm", head_dim=16),
    llama_like("glm4", "Glm4", head_dim=16),
    llama_like("glm4-moe", "Glm4Moe", head_dim=16, **EXPERTS, n_routed_experts=4, first_k_dense_replace=1),
    llama_like("helium", "Helium", head_dim=16),
    Family("exaone4", "Exaone4Config", "Exaone4Model", {**GROUPED, **SLIDING}, causal(window=sliding)),
    llama_like("seed-oss", "SeedOss", head_dim=16),
    llama_like("ernie4.5", "Ernie4_5", head_dim=16),
    llama_like("arcee", "Arcee"),
    llama_like("apertus", "Apertus"),
    llama_like("bitnet", "BitNet"),
    llama_like("hunyuan", "HunYuanDenseV1", head_dim=16),
    llama_like("nanochat", "NanoChat"),
    Family("gpt-oss", "GptOssConfig", "GptOssModel", {**SHAPED, **SLIDING, **EXPERTS},
           causal(window=sliding, sink=True), quick=True),
    Family("deepseek-v2", "DeepseekV2Config", "DeepseekV2Model", DEEPSEEK, latent),
    Family("deepseek-v3", "DeepseekV3Config", "DeepseekV3Model", DEEPSEEK, latent),
    Family("minicpm3", "MiniCPM3Config", "MiniCPM3Model", LATENT, latent),
    Family("modernbert-decoder", "ModernBertDecoderConfig", "ModernBertDecoderModel",
           {**TINY, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2, "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"]}, causal(window=sliding)),
    Family("roberta decoder", "RobertaConfig", "RobertaForCausalLM", {**TINY, "is_decoder": True}, causal()),
    Family("bert decoder", "BertConfig", "BertLMHeadModel", {**TINY, "is_decoder": True}, causal()),
    Family("diffllama", "DiffLlamaConfig", "DiffLlamaModel", GROUPED, differential),
    Family("doge", "DogeConfig", "DogeModel", GROUPED, layers(bias="dense")),
    Family("lfm2", "Lfm2Config", "Lfm2Model",
           {**GROUPED, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
           lambda config: [attention(config, causal=True, padding=True)]),
)  # fmt: skip
