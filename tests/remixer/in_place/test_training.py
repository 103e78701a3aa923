"""Models with mixers inside in the hands of what trains models of transformers."""

import pytest
import torch

import remixer
from remixer import LongShort

MIXER = LongShort(window=8, segment=4, memory=3)


@pytest.fixture
def llama(tiny, inputs):
    return remixer.remix(tiny("llama"), {"*.0.*": MIXER, "*": None}, inputs(), in_place=True)


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_trainer(llama, inputs, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    ids = inputs(rows=8, tokens=40)["input_ids"]
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    before = llama.model.layers[0].self_attn.mixer.pooling.detach().clone()
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": [], "save_steps": 2,
               "disable_tqdm": True, "learning_rate": 1e-2}  # fmt: skip
    trainer = Trainer(llama, TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    trainer.train()
    assert not torch.equal(llama.model.layers[0].self_attn.mixer.pooling, before)
    again = remixer.from_pretrained(AutoModelForCausalLM, tmp_path / "checkpoint-2")
    assert torch.equal(logits(again, inputs()), logits(llama, inputs()))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft(llama, tiny, inputs, tmp_path):
    peft = pytest.importorskip("peft")
    settings = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["mixer"]}
    model = peft.get_peft_model(llama, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    given = inputs(tokens=40)
    model.train()(**given, labels=given["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in trained)
    torch.optim.AdamW(trained, 1e-2).step()
    wanted = logits(model, given)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    fresh = remixer.remix(tiny("llama"), {"*.0.*": MIXER, "*": None}, inputs(), in_place=True)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(fresh, tmp_path), given), wanted)
    merged = model.merge_and_unload()
    assert (logits(merged, given) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert not any(".mixer." in name for name in remixer.undo(merged).state_dict())
