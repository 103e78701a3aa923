"""Commands in this process, and small folders that they read."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # commands load models by module:function from here, too

from commanded_here import says

WORDS = [f"w{number}" for number in range(22)]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture
def remixer_says():
    """Runs a command."""
    return says


def tokenizer(causal):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({word: index for index, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    if not causal:
        made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"} | ({"eos_token": "[SEP]"} if causal else {})
    inputs = ["input_ids", "attention_mask"] if causal else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **names)


SIZES = {
    "vocab_size": len(WORDS) + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A BERT of one layer, saved as a model for masked words, and its tokenizer."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "bert"
    BertForMaskedLM(BertConfig(max_position_embeddings=64, **SIZES)).save_pretrained(folder)
    tokenizer(causal=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A Llama of one layer and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "llama"
    sizes = {**SIZES, "num_key_value_heads": 2, "eos_token_id": 3, "bos_token_id": None, "initializer_range": 0.3}
    LlamaForCausalLM(LlamaConfig(max_position_embeddings=128, **sizes)).save_pretrained(folder)
    tokenizer(causal=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of two texts of the words that the tokenizers know."""
    folder = tmp_path_factory.mktemp("texts")
    for index in range(2):
        generator = torch.Generator().manual_seed(index)
        chosen = torch.randint(0, len(WORDS), (150,), generator=generator).tolist()
        (folder / f"{index}.txt").write_text(" ".join(WORDS[each] for each in chosen))
    return folder
