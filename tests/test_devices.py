"""Models that lie on another device than the CPU are read and rewritten there; it takes no GPU to see that."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MIXED = """
import torch
import pretend_device

kept = pretend_device.set_up()
there = torch.ones(3, 4).to("pretend")
assert there.device.type == "pretend" and float((there @ there.T).sum()) == 36.0
half = there[:, ::2]
half += 1
assert there.cpu()[0].tolist() == [2, 1, 2, 1]
try:
    there + torch.ones(3, 4)
except RuntimeError as error:
    assert "same device" in str(error) or "tensors on pretend and cpu" in str(error)
    print("refused")
"""
REWRITTEN = """
import copy

import torch
import transformers

import pretend_device
import remixer
from remixer import LongShort, Toeplitz

kept = pretend_device.set_up()
SIZES = dict(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=16)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=90, hidden_size=32, n_layer=1, n_head=4)
    ),
}
MIXERS = (LongShort(window=8, segment=4, memory=3), Toeplitz())


def batch(T, device):
    ids = torch.randint(3, 90, (2, T), generator=torch.Generator().manual_seed(T))
    mask = (torch.arange(T) >= torch.arange(2)[:, None] * T // 4).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def sites(model, device):
    return [(site.name, site.status, str(site.spec)) for site in remixer.explain(model, batch(24, device)).sites]


for name, make in MODELS.items():
    model = make().eval()
    there = copy.deepcopy(model).to("pretend")
    found = sites(model, "cpu")
    assert found == sites(there, "pretend") and found[0][1] == "understood"
    for mixer in MIXERS if name == "mistral" else MIXERS[:1]:
        ours = remixer.remix(model, mixer, batch(24, "cpu"))
        theirs = remixer.remix(there, mixer, batch(24, "pretend"))
        assert {each.device.type for each in theirs.parameters()} == {"pretend"}
        theirs.load_state_dict(ours.state_dict())
        for T in (1, 37):
            exist = batch(T, "cpu")["attention_mask"].bool()
            with torch.no_grad():
                off = ours(**batch(T, "cpu"))[0][exist] - theirs(**batch(T, "pretend"))[0].cpu()[exist]
            assert float(off.abs().max()) < 1e-4, (name, mixer, T)
    print(name)
"""


def output_of(program):
    """What a program prints, run in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_device_refuses_what_a_gpu_would():
    assert output_of(MIXED) == "refused"


def test_models_are_rewritten_where_they_are():
    assert output_of(REWRITTEN).split()[-3:] == ["bert", "mistral", "bloom"]
