"""Encoders of text."""

from typing import Any

from family import SCALED_QUERY, Attention, Family, Window, attention, layers, nothing

TINY = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "type_vocab_size": 2,
}
XLM = {"vocab_size": 100, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}


def both_sides(config: Any, layer: int) -> Window:
    """The window of a local layer of ModernBERT: half before, half after."""
    half = config.local_attention // 2
    return (half, half) if config.layer_types[layer] == "sliding_attention" else (None, None)


def two_streams(config: Any) -> list[Attention]:
    """LiLT: words and layout have attentions of their own, each adding the other's scores; the last one of layout
    is in no output."""
    shared = [Attention(kept="also read")] * 2
    return [*shared * (config.num_hidden_layers - 1), attention(config, bias="dense")]


def bert_like(name: str, prefix: str, quick: bool = False, **options: Any) -> Family:
    """A family that differs from BERT in nothing that concerns attention."""
    return Family(name, f"{prefix}Config", f"{prefix}Model", {**TINY, **options}, layers(padding=True), quick=quick)


FAMILIES = (
    bert_like("bert", "Bert", quick=True),
    bert_like("roberta", "Roberta"),
    bert_like("roberta-prelayernorm", "RobertaPreLayerNorm"),
    bert_like("xlm-roberta", "XLMRoberta"),
    bert_like("xlm-roberta-xl", "XLMRobertaXL"),
    bert_like("camembert", "Camembert"),
    bert_like("data2vec-text", "Data2VecText"),
    bert_like("ernie", "Ernie"),
    bert_like("electra", "Electra", embedding_size=32),
    bert_like("albert", "Albert", embedding_size=32),
    Family("bert-generation", "BertGenerationConfig", "BertGenerationEncoder", TINY, layers(padding=True)),
    bert_like("megatron-bert", "MegatronBert"),
    bert_like("rembert", "RemBert", input_embedding_size=32, output_embedding_size=32),
    bert_like("roc-bert", "RoCBert", pronunciation_vocab_size=20, shape_vocab_size=20),
    bert_like("splinter", "Splinter"),
    bert_like("xmod", "Xmod", default_language="en_XX"),
    bert_like("nomic-bert", "NomicBert"),
    bert_like("jina-embeddings-v3", "JinaEmbeddingsV3"),
    bert_like("eurobert", "EuroBert", num_key_value_heads=2),
    bert_like("gte", "Gte"),
    bert_like("esmc", "Esmc"),
    bert_like("roformer", "RoFormer"),
    bert_like("i-bert", "IBert"),
    bert_like("markuplm", "MarkupLM", max_depth=4, xpath_unit_hidden_size=8),
    bert_like("big-bird", "BigBird", attention_type="original_full"),
    bert_like("visual-bert", "VisualBert"),
    bert_like("luke", "Luke", entity_vocab_size=10, entity_emb_size=16, use_entity_aware_attention=False),
    Family("esm", "EsmConfig", "EsmModel", {**TINY, "mask_token_id": 3, "position_embedding_type": "rotary"},
           layers(padding=True, scale=SCALED_QUERY)),
    Family("esm absolute", "EsmConfig", "EsmModel", {**TINY, "mask_token_id": 3},
           layers(padding=True, scale=SCALED_QUERY)),
    Family("distilbert", "DistilBertConfig", "DistilBertModel",
           {"vocab_size": 100, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, layers(padding=True)),
    Family("mobilebert", "MobileBertConfig", "MobileBertModel",
           {**TINY, "embedding_size": 32, "intra_bottleneck_size": 32}, layers(padding=True, head_dim=8)),
    Family("squeezebert", "SqueezeBertConfig", "SqueezeBertModel", {**TINY, "embedding_size": 64},
           layers(padding=True)),
    Family("convbert", "ConvBertConfig", "ConvBertModel", {**TINY, "embedding_size": 64},
           layers(padding=True, heads=2, kv_heads=2, head_dim=16)),
    Family("mpnet", "MPNetConfig", "MPNetModel", TINY, layers(padding=True, bias="offset")),
    Family("modernbert", "ModernBertConfig", "ModernBertModel",
           {**TINY, "num_hidden_layers": 3, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
           layers(padding=True, window=both_sides), quick=True),
    Family("xlm", "XLMConfig", "XLMModel", XLM, layers(padding=True, scale=SCALED_QUERY)),
    Family("flaubert", "FlaubertConfig", "FlaubertModel", XLM, layers(padding=True, scale=SCALED_QUERY)),
    Family("layoutlm", "LayoutLMConfig", "LayoutLMModel", {**TINY, "max_2d_position_embeddings": 64},
           layers(padding=True), "text with boxes"),
    Family("lilt", "LiltConfig", "LiltModel", {**TINY, "hidden_size": 96, "max_2d_position_embeddings": 64},
           two_streams, "text with boxes"),
    Family("bros", "BrosConfig", "BrosModel", TINY, layers(bias="dense"), "text with polygons"),
    Family("tapas", "TapasConfig", "TapasModel", {**TINY, "type_vocab_sizes": [3, 9, 9, 2, 9, 9, 10]},
           layers(padding=True)),
    Family("deberta", "DebertaConfig", "DebertaModel",
           {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
           layers(bias="dense", scale=SCALED_QUERY)),
    Family("deberta without positions", "DebertaConfig", "DebertaModel", TINY,
           layers(padding=True, pads_queries=True, scale=SCALED_QUERY)),
    Family("deberta-v2", "DebertaV2Config", "DebertaV2Model",
           {**TINY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
           layers(bias="dense", scale=SCALED_QUERY), quick=True),
    Family("xlnet", "XLNetConfig", "XLNetModel",
           {"vocab_size": 100, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
           layers(bias="dense"), shortest=2),
    Family("fnet", "FNetConfig", "FNetModel", TINY, nothing, "text alone"),
)  # fmt: skip
