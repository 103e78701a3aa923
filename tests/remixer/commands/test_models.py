"""What MODEL may be."""

import json
import os
import shutil
import sys

import pytest
from commanded import Decoder
from torch import nn

from remixer.commands.models import ModelError, find


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_functions(monkeypatch, tmp_path):
    (tmp_path / "models_of_mine.py").write_text(
        "from torch import nn, zeros\nready = nn.Linear(3, 3)\n\n"
        "def make():\n    return nn.Linear(2, 2).train(), zeros(1, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = find("models_of_mine:make")
    assert (found.model.in_features, found.model.training, tuple(found.inputs.shape)) == (2, False, (1, 2))
    assert find("models_of_mine:ready").model.in_features == 3
    del sys.modules["models_of_mine"]


@pytest.mark.parametrize(("model", "told"), [
    ("nowhere_at_all:make", "there is no module nowhere_at_all, here or installed"),
    ("commanded:nothing", "the module commanded has no nothing"),
    ("commanded:number", "commanded:number must return a torch module, or one and its inputs; got int"),
    ("commanded:broken", "commanded:broken raised RuntimeError: no weights today"),
    ("./nowhere", r"there is no \./nowhere: MODEL is a folder"),
    ("a/b/c", "there is no a/b/c"),
])  # fmt: skip
def test_what_names_no_model(model, told):
    with pytest.raises(ModelError, match=told):
        find(model)


def test_folders_and_files_that_are_none(tmp_path):
    (tmp_path / "notes.txt").write_text("no")
    with pytest.raises(ModelError, match="is a file that is no model"):
        find(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelError, match=r"holds neither remixer\.json nor config\.json"):
        find(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files; give one of them: .*a\.gguf, .*b\.gguf"):
        find(str(tmp_path))
    with pytest.raises(ModelError, match="transformers can't load"):
        find(str(tmp_path / "a.gguf"))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "plan.json").write_text("{}")
    with pytest.raises(ModelError, match="`remixer run` runs it"):
        find(str(tmp_path / "parts"))


def test_a_folder_of_transformers_is_of_the_class_that_it_was_saved_from(bert_folder, llama_folder):
    found = find(str(bert_folder))
    assert type(found.model).__name__ == "BertForMaskedLM"
    assert found.tokenizer("w0 w2")["input_ids"] == [2, 4, 6, 3]
    assert (found.inputs, found.remixed, found.notes) == (None, None, ())
    assert type(find(str(llama_folder)).model).__name__ == "LlamaForCausalLM"


def test_an_id_of_the_hub_is_looked_up(monkeypatch):
    asked = []

    def offline(name, **given):
        asked.append((name, given))
        raise OSError("there is no network")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with pytest.raises(ModelError, match=r"transformers can't load somebody/model-2\.5: there is no network"):
        find("somebody/model-2.5")
    assert asked == [("somebody/model-2.5", {"trust_remote_code": False})]


def test_a_class_that_transformers_does_not_have(bert_folder, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MyBert"]}))
    assert type(find(str(folder)).model).__name__ == "BertModel"


def test_weights_that_are_missing_are_told(bert_folder, tmp_path, capsys):
    folder = shutil.copytree(bert_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    (note,) = find(str(folder)).notes
    assert note in capsys.readouterr().err
    assert "the checkpoint lacks" in note
    assert "classifier" in note
    assert "random" in note


def test_code_that_comes_with_a_model_never_runs(bert_folder, tmp_path):
    folder, marker = shutil.copytree(bert_folder, tmp_path / "other"), tmp_path / "ran"
    code = "from transformers import BertConfig\n\nclass MyConfig(BertConfig):\n    pass\n"
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\n{code}")
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": own}))
    with pytest.raises(ModelError, match="transformers can't load"):
        find(str(folder))
    assert not marker.exists()


def test_a_folder_that_is_named_like_a_function(monkeypatch, tmp_path, bert_folder):
    monkeypatch.chdir(tmp_path)
    os.symlink(bert_folder, "a:b")
    assert type(find("a:b").model).__name__ == "BertForMaskedLM"


def test_devices():
    found = find("commanded:decoder")
    assert isinstance(found.model, Decoder)
    assert isinstance(found.on("cpu").model, nn.Module)
    with pytest.raises(ModelError, match="can't use the device 'nonsense'"):
        found.on("nonsense")
