"""Inputs that are read, or made up."""

import commanded
import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import nn

from remixer.commands.example_inputs import InputsError, described, inputs_for
from remixer.commands.models import Found


def made(model, **options):
    given = inputs_for(Found("m", model.eval()), None, options.get("batch"), options.get("length"))
    model(**given)
    return {name: tuple(each.shape) for name, each in given.items()}


@pytest.mark.parametrize(("model", "shapes"), [
    (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), {"src": (2, 16, 32)}),
    (nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), {"tgt": (2, 16, 32), "memory": (2, 16, 32)}),
    (nn.MultiheadAttention(32, 4, batch_first=True), dict.fromkeys(("query", "key", "value"), (2, 16, 32))),
    (commanded.decoder(), {"ids": (2, 16)}),
    (commanded.vit(), {"image": (2, 3, 16, 16)}),
])  # fmt: skip
def test_by_the_signature(model, shapes):
    assert made(model) == shapes


def test_sizes():
    assert made(commanded.decoder(), batch=3, length=40) == {"ids": (3, 40)}


def test_what_nobody_can_say():
    with pytest.raises(
        InputsError, match=r"what TwoDimensional takes, whose forward takes \(spectrum, mapping\)\. What to do"
    ):
        made(commanded.mystery())
    with pytest.raises(InputsError, match=r"what Decoder takes.*the last that was tried raised"):
        made(commanded.decoder(), length=500)


def transformers_model(name, **options):
    import transformers

    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))


TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT_PART = {**TEXT, "max_position_embeddings": 20, "projection_dim": 16}
IMAGE_PART = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
              "image_size": 16, "patch_size": 8}  # fmt: skip
SOUND = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
         "conv_dim": [16, 16], "conv_kernel": [8, 4], "conv_stride": [4, 2], "num_conv_pos_embeddings": 8,
         "num_conv_pos_embedding_groups": 4}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2,
      "decoder_start_token_id": 0}  # fmt: skip
WHISPER = {"vocab_size": 60, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 20,
           "num_mel_bins": 8, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1,
           "decoder_start_token_id": 1}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "shapes"), [
    ("Bert", {**TEXT, "max_position_embeddings": 12}, {"input_ids": (2, 12), "attention_mask": (2, 12)}),
    ("Llama", TEXT, {"input_ids": (2, 16), "attention_mask": (2, 16)}),
    ("T5", T5, {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 10)}),
    ("ViT", IMAGE_PART, {"pixel_values": (2, 3, 16, 16)}),
    ("CLIP", {"text_config": TEXT_PART, "vision_config": IMAGE_PART, "projection_dim": 16},
     {"input_ids": (2, 16), "attention_mask": (2, 16), "pixel_values": (2, 3, 16, 16)}),
    ("Wav2Vec2", SOUND, {"input_values": (2, 144)}),
    ("Wav2Vec2", {**SOUND, "feat_extract_norm": "layer"}, {"input_values": (2, 144), "attention_mask": (2, 144)}),
    ("Whisper", WHISPER, {"input_features": (2, 8, 40), "decoder_input_ids": (2, 10)}),
])  # fmt: skip
def test_by_the_config(name, options, shapes):
    assert made(transformers_model(name, **options)) == shapes


def test_token_ids_are_no_special_ones_and_the_tokenizer_says_what_comes_with_them(bert_folder):
    from remixer.commands.models import find

    given = inputs_for(find(str(bert_folder)), None, 4, 30)
    assert sorted(given) == ["attention_mask", "input_ids", "token_type_ids"]
    assert given["input_ids"].min() >= 1
    assert not (given["attention_mask"] == 1).all()
    assert described(given)["input_ids"] == {"dtype": "int64", "shape": [4, 30]}


def test_files(tmp_path):
    found = Found("m", commanded.decoder())
    save_file({"ids": torch.ones(1, 3, dtype=torch.int64)}, tmp_path / "x.safetensors")
    assert tuple(inputs_for(found, tmp_path / "x.safetensors", None, None)["ids"].shape) == (1, 3)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 20)
    for name in ("bad.safetensors", "none.safetensors"):
        with pytest.raises(InputsError, match=f"cannot read the inputs .*{name}"):
            inputs_for(found, tmp_path / name, None, None)
    with pytest.raises(typer.BadParameter, match="here --inputs gives them"):
        inputs_for(found, tmp_path / "x.safetensors", 2, None)


def test_inputs_that_came_with_the_model_get_their_names():
    model, x = commanded.encoder()
    assert set(inputs_for(Found("m", model, x), None, None, None)) == {"src"}
    assert set(inputs_for(Found("m", model, (x,)), None, None, None)) == {"src"}
    assert set(inputs_for(Found("m", model, ((x,), {"is_causal": False})), None, None, None)) == {"src", "is_causal"}
    with pytest.raises(typer.BadParameter, match="here m gives them"):
        inputs_for(Found("m", model, x), None, None, 9)
