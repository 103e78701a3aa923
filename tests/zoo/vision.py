"""Vision transformers, and those that read images beside text."""

from typing import Any

from family import SCALED_QUERY, Attention, Expected, Family, attention, layers, together, unreadable

IMAGE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "projection_dim": 32,
}
STAGES = {
    "image_size": 32,
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "sr_ratios": [2, 1],
    "sequence_reduction_ratios": [2, 1],
    "hidden_sizes": [32, 64],
    "patch_sizes": [3, 3],
    "strides": [4, 2],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}


def vit_like(name: str, prefix: str, quick: bool = False, **options: Any) -> Family:
    """Attention over all patches, without a mask."""
    return Family(name, f"{prefix}Config", f"{prefix}Model", {**IMAGE, **options}, layers(), "image", quick=quick)


def tower(name: str, prefix: str, **options: Any) -> Family:
    """The vision part of a model of images and text."""
    given = {**IMAGE, **options}
    return Family(name, f"{prefix}VisionConfig", f"{prefix}VisionModel", given, layers(), "image")


def staged(**given: Any) -> Expected:
    """One attention a layer, heads and width by stage; keys fewer than queries where they were pooled."""

    def expected(config: Any) -> list[Attention]:
        ratios = getattr(config, "sr_ratios", None) or config.sequence_reduction_ratios
        return [
            attention(config, heads=heads, head_dim=width // heads, cross=ratio > 1, **given)
            for depth, heads, width, ratio in zip(
                config.depths, config.num_attention_heads, config.hidden_sizes, ratios, strict=True
            )
            for _ in range(depth)
        ]

    return expected


def windows(config: Any) -> list[Attention]:
    """Attention within windows of an image of one size, which count as rows: its relative positions are of two axes."""
    return [
        attention(config, heads=heads, head_dim=config.embed_dim * 2**stage // heads, bias="dense")
        for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True))
        for _ in range(depth)
    ]


FAMILIES = (
    vit_like("vit", "ViT", quick=True),
    vit_like("deit", "DeiT"),
    vit_like("dinov2", "Dinov2", mlp_ratio=2),
    vit_like("dinov2-with-registers", "Dinov2WithRegisters", mlp_ratio=2),
    vit_like("dinov3", "DINOv3ViT", num_register_tokens=2),
    vit_like("ijepa", "IJepa"),
    vit_like("vit-msn", "ViTMSN"),
    vit_like("vit-mae", "ViTMAE", mask_ratio=0.0),
    vit_like("yolos", "Yolos", image_size=[32, 32], num_detection_tokens=4),
    vit_like("dpt", "DPT", backbone_out_indices=[0, 1], neck_hidden_sizes=[16, 32], neck_ignore_stages=[],
             reassemble_factors=[1, 1]),
    Family("beit", "BeitConfig", "BeitModel", IMAGE, layers(), "image"),
    Family("beit with relative positions", "BeitConfig", "BeitModel", {**IMAGE, "use_relative_position_bias": True},
           layers(bias="dense"), "image"),
    Family("data2vec-vision", "Data2VecVisionConfig", "Data2VecVisionModel",
           {**IMAGE, "use_shared_relative_position_bias": True}, layers(bias="dense"), "image"),
    tower("clip vision", "CLIP"),
    tower("siglip vision", "Siglip", vision_use_head=False),
    Family("siglip2 vision", "Siglip2VisionConfig", "Siglip2VisionModel",
           {**IMAGE, "num_patches": 16, "vision_use_head": False}, layers(padding=True), "image in patches",
           one_batch=True),
    Family("siglip vision with pooling", "SiglipVisionConfig", "SiglipVisionModel", IMAGE,
           together(layers(), lambda config: [attention(config, cross=True, scale=SCALED_QUERY)]), "image"),
    tower("chinese-clip vision", "ChineseCLIP"),
    tower("altclip vision", "AltCLIP"),
    tower("blip vision", "Blip"),
    tower("aimv2 vision", "Aimv2", use_head=False),
    tower("mlcd vision", "MLCD"),
    tower("owlvit vision", "OwlViT"),
    Family("clip text", "CLIPTextConfig", "CLIPTextModel", TEXT, layers(causal=True, padding=True)),
    Family("siglip text", "SiglipTextConfig", "SiglipTextModel", {**TEXT, "projection_size": 32},
           layers(padding=True)),
    Family("aimv2 text", "Aimv2TextConfig", "Aimv2TextModel", TEXT, layers(causal=True, padding=True),
           refused={"sdpa": "where no token is masked"}),  # traced, it is causal where it is not
    Family("owlvit text", "OwlViTTextConfig", "OwlViTTextModel", TEXT, layers(causal=True, padding=True)),
    Family("blip text", "BlipTextConfig", "BlipTextModel", {**TEXT, "is_decoder": False}, layers(padding=True)),
    Family("clip", "CLIPConfig", "CLIPModel", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 32},
           together(layers(part="vision_config"), layers(part="text_config", causal=True, padding=True)),
           "text and image"),
    Family("siglip", "SiglipConfig", "SiglipModel",
           {"text_config": {**TEXT, "projection_size": 64}, "vision_config": IMAGE},
           together(layers(part="vision_config"),
                    lambda config: [attention(config.vision_config, cross=True, scale=SCALED_QUERY)],
                    layers(part="text_config", padding=True)), "text and image"),
    Family("videomae", "VideoMAEConfig", "VideoMAEModel", {**IMAGE, "num_frames": 4}, layers(), "video"),
    Family("vivit", "VivitConfig", "VivitModel", {**IMAGE, "num_frames": 4, "tubelet_size": [2, 8, 8]}, layers(),
           "video"),
    Family("timesformer", "TimesformerConfig", "TimesformerModel", {**IMAGE, "num_frames": 4},
           lambda config: [attention(config)] * (2 * config.num_hidden_layers), "video"),
    Family("pvt", "PvtConfig", "PvtModel", {**STAGES, "patch_sizes": [4, 2]}, staged(), "image"),
    Family("pvt-v2", "PvtV2Config", "PvtV2Model", STAGES, staged(), "image"),
    Family("segformer", "SegformerConfig", "SegformerModel", STAGES, staged(), "image"),
    Family("glpn", "GLPNConfig", "GLPNModel", STAGES, staged(), "image"),
    Family("swin", "SwinConfig", "SwinModel", SWIN, windows, "image"),
    Family("swinv2", "Swinv2Config", "Swinv2Model", SWIN, unreadable("tensor", count="num_layers", each=2), "image"),
    Family("mobilevit", "MobileViTConfig", "MobileViTModel",
           {"image_size": 32, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
            "num_attention_heads": 4},
           lambda config: [attention(config, head_dim=width // config.num_attention_heads)
                           for width, depth in zip(config.hidden_sizes, (2, 4, 3), strict=True) for _ in range(depth)],
           "image"),
    Family("imagegpt", "ImageGPTConfig", "ImageGPTModel",
           {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
           layers(causal=True, padding=True)),
)  # fmt: skip
