"""Encoders of speech, and of time series."""

from typing import Any

from family import SCALED_QUERY, Family, layers, unreadable

SPEECH = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": [32, 32],
    "conv_kernel": [8, 4],
    "conv_stride": [4, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "layerdrop": 0.0,
}


def speech_like(name: str, prefix: str, quick: bool = False, **options: Any) -> Family:
    """Convolutions over samples, then an encoder like BERT's; padding is computed from that of the samples."""
    given = {**SPEECH, **options}
    return Family(name, f"{prefix}Config", f"{prefix}Model", given, layers(padding=True), "waveform", quick=quick)


FAMILIES = (
    speech_like("wav2vec2", "Wav2Vec2"),
    speech_like("wav2vec2 stable", "Wav2Vec2", do_stable_layer_norm=True),
    speech_like("hubert", "Hubert"),
    speech_like("unispeech", "UniSpeech"),
    speech_like("unispeech-sat", "UniSpeechSat"),
    speech_like("data2vec-audio", "Data2VecAudio", num_conv_pos_embeddings=2, conv_pos_kernel_size=3),
    speech_like("sew", "SEW", squeeze_factor=1),
    Family("wavlm", "WavLMConfig", "WavLMModel", SPEECH, layers(bias="dense", scale=SCALED_QUERY),
           "waveform"),
    Family("sew-d", "SEWDConfig", "SEWDModel", {**SPEECH, "squeeze_factor": 1}, unreadable("masked_fill"), "waveform"),
    Family("wav2vec2-conformer", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel", SPEECH,
           layers(bias="dense"), "waveform"),
    Family("wav2vec2-conformer rotary", "Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel",
           {**SPEECH, "position_embeddings_type": "rotary"}, layers(padding=True), "waveform"),
    Family("wav2vec2-bert", "Wav2Vec2BertConfig", "Wav2Vec2BertModel",
           {**SPEECH, "feature_projection_input_dim": 16}, layers(bias="dense"), "spectrum"),
    Family("ast", "ASTConfig", "ASTModel",
           {**SPEECH, "patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16},
           layers(), "spectrogram"),
    Family("patchtst", "PatchTSTConfig", "PatchTSTModel",
           {"num_input_channels": 2, "context_length": 32, "patch_length": 4, "patch_stride": 4, "d_model": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128}, layers(), "series"),
)  # fmt: skip
