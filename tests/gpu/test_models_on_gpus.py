"""Models that lie on a GPU: rewritten, trained, saved, generating."""

import copy

import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort, Toeplitz
from remixer.testing import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers")

MIXERS = {
    "softmax": "softmax",
    "long_short": LongShort(window=32, segment=4, memory=3),
    "toeplitz": Toeplitz(gate="value", weigh="key"),
}
each_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def bert():
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def llama():
    config = transformers.LlamaConfig(
        vocab_size=90,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=None,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


def batch(T, B=2, device="cpu"):
    ids = torch.randint(3, 90, (B, T), generator=torch.Generator().manual_seed(T))
    mask = (torch.arange(T) >= torch.arange(B)[:, None] * T // 4).long()
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.to(device)}


@pytest.mark.parametrize("make", [bert, llama], ids=["bert", "llama"])
@each_mixer
def test_a_model_rewritten_on_a_gpu_is_the_one_rewritten_on_a_cpu(make, mixer, device, tmp_path):
    torch.manual_seed(0)
    model = make()
    here = remixer.remix(copy.deepcopy(model), mixer, batch(40))
    there = remixer.remix(copy.deepcopy(model).to(device), mixer, batch(40, device=device))
    there.load_state_dict(here.state_dict())
    assert {parameter.device.type for parameter in there.parameters()} == {torch.device(device).type}
    remixer.save(there, tmp_path / "model")
    loaded = remixer.load(tmp_path / "model").to(device)
    for T in (1, 37, 300):
        inputs = batch(T)
        exist = inputs["attention_mask"].bool()
        moved = {name: tensor.to(device) for name, tensor in inputs.items()}
        with torch.no_grad():
            expected = here(**inputs)[0][exist]
            assert_close(there(**moved)[0].cpu()[exist], expected)
            assert_close(loaded(**moved)[0].cpu()[exist], expected)


@each_mixer
def test_generating(mixer, device):
    torch.manual_seed(0)
    model = llama().to(device)
    small = remixer.remix(model, mixer, batch(24, device=device))
    prompt = batch(21, device=device)
    written = remixer.generate(small, prompt["input_ids"], 20, prompt["attention_mask"])
    assert written.device.type == torch.device(device).type
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    with torch.no_grad():
        for _ in range(20):  # from the whole, each time
            logits = small(input_ids=ids, attention_mask=mask)[0]
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    assert torch.equal(written, ids)
    if mixer == "softmax":
        theirs = model.generate(**prompt, max_new_tokens=20, do_sample=False)
        assert torch.equal(written, theirs)


@pytest.mark.parametrize("mixer", [MIXERS["long_short"], MIXERS["toeplitz"]], ids=["long_short", "toeplitz"])
def test_transfer_and_plan(mixer, device, tmp_path):
    torch.manual_seed(0)
    model = llama().to(device)
    small = remixer.remix(model, mixer, batch(40, device=device))
    data = [batch(150 + i, device=device) for i in range(4)]
    report = remixer.transfer(small, data, steps=8, progress=False, checkpoint=tmp_path / "state")
    assert report is not None
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())
    plan = remixer.plan(model, data[0], data[:2], mixers=[mixer], budget=0.6, progress=False)
    assert plan is not None


def test_training_in_bfloat16(device):
    torch.manual_seed(0)
    model = bert().to(device, torch.bfloat16)
    small = remixer.remix(model, LongShort(window=32), batch(40, device=device)).train()
    optimiser = torch.optim.AdamW(small.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = small(**batch(256, device=device))[0].float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_autocast(device):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True).to(device).eval()
    hidden = torch.randn(2, 200, 64, device=device)
    for mixer in (LongShort(window=32), Toeplitz()):
        small = remixer.remix(copy.deepcopy(layer), mixer, hidden)
        with torch.no_grad():
            exact = small(hidden)
            with torch.autocast(device, torch.bfloat16):
                assert_close(small(hidden).bfloat16(), exact.bfloat16())
