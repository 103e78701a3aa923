"""Encoder-decoders, of text and of speech to text."""

from dataclasses import replace
from typing import Any

from encoders import TINY
from family import SCALED_QUERY, Attention, Family, attention, encoder_decoder, layers, sliding

BART = {
    "vocab_size": 100,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}
T5 = {
    "vocab_size": 100,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
STACK = {**TINY, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8,
         "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}  # fmt: skip


def bart_like(name: str, prefix: str, quick: bool = False, facts: Any = None, **options: Any) -> Family:
    """A family that differs from BART in nothing that concerns attention."""
    model, given = f"{prefix}Model", {**BART, **options}
    return Family(
        name,
        f"{prefix}Config",
        model,
        given,
        encoder_decoder(padding=True, **(facts or {})),
        "text to text",
        quick=quick,
    )


def t5_like(name: str, prefix: str, quick: bool = False, **options: Any) -> Family:
    """Relative positions by buckets in both stacks, scores that are not scaled."""
    expected = encoder_decoder(
        encoder="num_layers", decoder="num_decoder_layers", padding=True, scale=1.0, bias="offset"
    )
    return Family(name, f"{prefix}Config", f"{prefix}Model", {**T5, **options}, expected, "text to text", quick=quick)


def gemma_stacks(config: Any) -> list[Attention]:
    """Gemma 2's layers as an encoder, whose windows look both ways, and as a decoder with cross-attention."""
    found = []
    for layer in range(config.encoder.num_hidden_layers):
        far = config.encoder.sliding_window if config.encoder.layer_types[layer] == "sliding_attention" else None
        found.append(attention(config.encoder, layer, padding=True, window=(far, far)))
    for layer in range(config.decoder.num_hidden_layers):
        found.append(attention(config.decoder, layer, causal=True, padding=True, window=sliding))
        found.append(attention(config.decoder, layer, padding=True, cross=True))
    return [replace(one, softcap=config.decoder.attn_logit_softcapping) for one in found]


def prophet_stacks(config: Any) -> list[Attention]:
    """ProphetNet: scores by position beside Q K^T, and streams of predictions with two keys of every token."""
    heads, own = config.num_decoder_attention_heads, {"scale": SCALED_QUERY}
    found = [
        attention(config, padding=True, heads=config.num_encoder_attention_heads, **own)
    ] * config.num_encoder_layers
    size = config.hidden_size // heads
    main = attention(config, heads=heads, bias="dense", **own)
    streams = attention(config, heads=config.ngram * heads, head_dim=size, bias="dense", cross=True, **own)
    cross = attention(config, heads=heads, padding=True, cross=True, **own)
    return found + [main, streams, cross] * config.num_decoder_layers


FAMILIES = (
    bart_like("bart", "Bart", quick=True),
    bart_like("mbart", "MBart"),
    bart_like("pegasus", "Pegasus"),
    bart_like("marian", "Marian"),
    bart_like("blenderbot", "Blenderbot"),
    bart_like("blenderbot-small", "BlenderbotSmall"),
    bart_like("m2m-100", "M2M100", encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    bart_like("plbart", "PLBart"),
    bart_like("mvp", "Mvp", facts={"scale": SCALED_QUERY}),
    bart_like("bigbird-pegasus", "BigBirdPegasus", attention_type="original_full"),
    bart_like("nllb-moe", "NllbMoe", num_experts=4, encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    Family("bart decoder", "BartConfig", "BartForCausalLM", BART,
           layers(count="decoder_layers", causal=True, padding=True)),
    Family("prophetnet", "ProphetNetConfig", "ProphetNetModel",
           {"vocab_size": 100, "hidden_size": 64, "num_encoder_layers": 2, "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128, "max_position_embeddings": 128, "decoder_start_token_id": 1},
           prophet_stacks, "text to text"),
    t5_like("t5", "T5", quick=True),
    t5_like("mt5", "MT5"),
    t5_like("umt5", "UMT5"),
    t5_like("switch-transformers", "SwitchTransformers", num_experts=4),
    Family("t5 encoder", "T5Config", "T5EncoderModel", T5, layers(padding=True, scale=1.0, bias="offset")),
    Family("t5gemma", "T5GemmaConfig", "T5GemmaModel",
           {"encoder": STACK, "decoder": {**STACK, "cross_attention_hidden_size": 64}, "vocab_size": 100},
           gemma_stacks, "text to text"),
    Family("whisper", "WhisperConfig", "WhisperModel",
           {**BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64,
            "begin_suppress_tokens": None},
           encoder_decoder(scale=SCALED_QUERY), "fixed spectrum"),
    Family("speech-to-text", "Speech2TextConfig", "Speech2TextModel",
           {**BART, "input_feat_per_channel": 16, "conv_channels": 64, "max_source_positions": 200,
            "max_target_positions": 64},
           encoder_decoder(padding=True), "spectrum to text"),
    Family("moonshine", "MoonshineConfig", "MoonshineModel",
           {**TINY, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4, "decoder_start_token_id": 1},
           encoder_decoder(encoder="encoder_num_hidden_layers", decoder="decoder_num_hidden_layers"),
           "long waveform to text"),
)  # fmt: skip
