"""Small models of every kind of attention, through the whole export."""

import copy
import json

import pytest
import torch
from small_model import Block, Model, inputs
from torch import nn
from torch.nn import functional as F

import remixer
from remixer import LongShort, Toeplitz
from remixer.export import ExportError, OnnxMismatchError, to_onnx
from remixer.export.onnx import attention as attention_module
from remixer.export.onnx import verify
from remixer.export.onnx.runtime import Session
from remixer.rewrite import agreement


@pytest.fixture(scope="module", params=[False, True], ids=["bidirectional", "causal"])
def model(request):
    torch.manual_seed(0)
    return Model(causal=request.param, layers=1).eval()


@pytest.fixture(scope="module")
def softmax(model, captured_once):
    return captured_once.remix(model, "softmax", inputs())


CHOICES = [
    "softmax",
    LongShort(window=32, rank=4, segment=4, memory=16, maps=True),
    Toeplitz(gate="value", weigh="key"),
    pytest.param(Toeplitz(), marks=pytest.mark.slow),
    pytest.param(LongShort(window=33, rank=0, sinks=0), marks=pytest.mark.slow),
    pytest.param(Toeplitz(per="head", gate="query", normalise=False), marks=pytest.mark.slow),
    pytest.param(Toeplitz(weigh="key"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CHOICES, ids=lambda choice: str(choice)[:50])
def written(request, model, captured_once, tmp_path_factory):
    """A model in training mode that was exported, the file, its manifest, and the weights before."""
    small = captured_once.remix(model, request.param, inputs()).train()
    before = {name: each.clone() for name, each in small.state_dict().items()}
    path = tmp_path_factory.mktemp("written") / "model.onnx"
    return small, path, to_onnx(small, path), before


def test_a_file_runs_at_any_size_and_gives_torchs_numbers(written):
    trained, path, manifest, _ = written
    small = copy.deepcopy(trained).eval()
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    assert json.loads(path.with_name("model.onnx.json").read_text()) == json.loads(json.dumps(manifest.to_dict()))
    assert manifest.inputs["ids"]["shape"] == ["batch", "length"]
    assert manifest.outputs["hidden"]["shape"] == ["batch", "length", 32]
    assert manifest.trials >= 12
    assert manifest.error < 1e-4
    session = Session(path)
    for T, B in ((1, 1), (7, 2), (33, 1), (131, 2), (700, 1), (1100, 2)):
        call = inputs(T, B)
        call["mask"][-1, T - T // 3 :] = 0
        with torch.no_grad():
            want = small(**call)["hidden"]
        got = session(call)[session.outputs.index("hidden")]
        exist = call["mask"].bool()
        assert float((got - want)[exist].abs().max()) < 1e-4


def test_the_model_is_as_it_was(written):
    small, _, _, before = written
    assert small.training
    assert all(module.training for module in small.modules())
    assert all(torch.equal(each, before[name]) for name, each in small.state_dict().items())


def test_sites_that_are_kept(tmp_path):
    torch.manual_seed(0)
    small = remixer.remix(Model().eval(), {"blocks.0": "toeplitz", "*": None}, inputs())
    manifest = to_onnx(small, tmp_path / "model.onnx")
    assert list(manifest.mixers) == ["blocks.0.mixer"]
    assert manifest.error < 1e-5


def test_a_kept_attention_with_grouped_heads(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.query, self.key = Block(32, 4, False), nn.Linear(32, 32), nn.Linear(32, 16)

        def forward(self, hidden):
            hidden = self.first(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))
            query, key = (each(hidden).unflatten(-1, (-1, 8)).transpose(1, 2) for each in (self.query, self.key))
            mixed = F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    small = remixer.remix(Both().eval(), {"first": "softmax", "*": None}, torch.randn(2, 20, 32))
    assert to_onnx(small, tmp_path / "model.onnx").error < 1e-5


@pytest.mark.parametrize("mixer", ["softmax", "toeplitz"])
def test_views_of_what_fused_attention_gives_by_tokens(mixer, tmp_path):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, hidden):
            query, key, value = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in self.qkv(hidden).chunk(3, -1))
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).view(len(hidden), -1, 32)

    torch.manual_seed(0)
    small = remixer.remix(Viewed().eval(), mixer, torch.randn(2, 17, 32))
    assert to_onnx(small, tmp_path / "model.onnx").error < 1e-5


def test_grouped_heads_and_offset_bias(tmp_path):
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
            self.table = nn.Embedding(9, 4)

        def forward(self, hidden):
            query, key, value = (
                each(hidden).unflatten(-1, (-1, 8)).transpose(1, 2) for each in (self.query, self.key, self.value)
            )
            key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
            place = torch.arange(hidden.shape[1])
            bias = self.table((place[:, None] - place).clamp(-4, 4) + 4).permute(2, 0, 1)
            return F.scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    hidden = torch.randn(2, 20, 32)
    for mixer in ("softmax", LongShort(window=16, rank=3), "toeplitz"):
        manifest = to_onnx(remixer.remix(Biased().eval(), mixer, hidden), tmp_path / "model.onnx")
        assert manifest.inputs == {"input": {"dtype": "float", "shape": ["batch", "length", 32]}}
        assert manifest.error < 1e-5


def test_a_fixed_length_is_folded(tmp_path):
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.place, self.block = nn.Parameter(torch.randn(1, 50, 32)), Block(32, 4, False)

        def forward(self, hidden):
            return self.block(hidden + self.place, torch.ones(hidden.shape[0], 50, dtype=torch.bool))

    torch.manual_seed(0)
    small = remixer.remix(Patches().eval(), "toeplitz", torch.randn(2, 50, 32))
    manifest = to_onnx(small, tmp_path / "model.onnx")
    assert manifest.inputs["input"]["shape"] == ["batch", 50, 32]
    assert manifest.static
    assert "Cos" not in manifest.nodes
    frequency = remixer.remix(Patches().eval(), "frequency_toeplitz", torch.randn(2, 50, 32))
    assert to_onnx(frequency, tmp_path / "model.onnx").error < 1e-5


def test_a_model_that_takes_few_sizes_is_exported_at_its_own(tmp_path):
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.block = nn.Conv2d(3, 32, 8, 8), Block(32, 4, False)
            self.first, self.place = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))

        def forward(self, pixels):
            hidden = self.patches(pixels).flatten(2).transpose(1, 2)
            hidden = torch.cat([self.first.expand(hidden.shape[0], -1, -1), hidden], 1) + self.place
            return self.block(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool))

    torch.manual_seed(0)
    small = remixer.remix(Image().eval(), "softmax", torch.randn(2, 3, 32, 32))
    manifest = to_onnx(small, tmp_path / "model.onnx")
    assert manifest.error < 1e-5
    assert manifest.trials == 2  # 32 x 32, and 37 x 37, of which it doesn't see the rest
    assert Session(tmp_path / "model.onnx")({"input": torch.randn(3, 3, 32, 32)})[0].shape == (3, 17, 32)


def test_texts_beside_images_of_one_size_may_be_longer_than_a_window(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.place = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, 16, 32))
            self.text = Block(32, 4, False)

        def forward(self, hidden, mask, pixels):
            image = self.patches(pixels).flatten(2).transpose(1, 2) + self.place
            return self.text(hidden, mask), image

    torch.manual_seed(0)
    given = torch.randn(2, 12, 32), torch.ones(2, 12, dtype=torch.bool), torch.randn(2, 3, 32, 32)
    small = remixer.remix(Both().eval(), LongShort(window=32, segment=8, memory=16), given)
    assert to_onnx(small, tmp_path / "model.onnx").error < 1e-5
    hidden, mask = torch.randn(3, 50, 32), torch.ones(3, 50, dtype=torch.bool)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        want = small(hidden, mask, pixels)
    session = Session(tmp_path / "model.onnx")
    got = session(dict(zip(session.inputs, (hidden, mask, pixels), strict=True)))
    torch.testing.assert_close(got, list(want), rtol=1e-4, atol=1e-5)


def test_frequency_toeplitz_at_any_length_is_refused(model, tmp_path):
    small = remixer.remix(model, "frequency_toeplitz", inputs())
    with pytest.raises(ExportError, match=r"blocks\.0.*'frequency_toeplitz'.*Fix the length"):
        to_onnx(small, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_wrong_graph_leaves_no_file_and_says_where_it_goes_wrong(softmax, tmp_path, monkeypatch):
    def wrong(query, key, value, *rest, **others):
        return attention_module.attention(query, key, value, *rest, **{**others, "scale": 0.3})

    monkeypatch.setattr("remixer.export.onnx.convert.attention", wrong)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    told = r"differs from torch by .* on inputs .*first node that differs is getitem\w*, of Softmax at blocks\.0"
    with pytest.raises(OnnxMismatchError, match=told):
        to_onnx(softmax, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"what was there"


def test_torch_in_float64_says_who_is_right(softmax, tmp_path, monkeypatch):
    def off(module, call):
        given = agreement.run(module, call)
        return {name: value * (1 + 2e-4) for name, value in given.items()}

    monkeypatch.setattr(verify, "run", off)  # what float32 gives is off by more than is allowed
    assert to_onnx(softmax, tmp_path / "model.onnx").error < 1e-5
    # And so is what float64 does.
    monkeypatch.setattr(verify, "outputs_in_float64", lambda *given: list(off(*given).values()))
    with pytest.raises(OnnxMismatchError, match=r"differs from torch by 0\.0002 in hidden, allowed 0\.0001"):
        to_onnx(softmax, tmp_path / "other.onnx")


def test_a_graph_that_onnxruntime_refuses_leaves_no_file(softmax, tmp_path, monkeypatch):
    monkeypatch.setattr("remixer.export.onnx.exporting.write", lambda graph, path: path.write_bytes(b"no graph"))
    with pytest.raises(ExportError, match="onnxruntime refuses the graph: "):
        to_onnx(softmax, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(softmax, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere to write model\.onnx to"):
        to_onnx(softmax, tmp_path / "nowhere" / "model.onnx")


def test_other_precisions_are_refused(softmax, tmp_path):
    with pytest.warns(UserWarning, match="captured in higher precision"):
        small = copy.deepcopy(softmax).bfloat16()
    with pytest.raises(ExportError, match=r"embedding\.weight, which is in torch\.bfloat16.*call \.float\(\)"):
        to_onnx(small, tmp_path / "model.onnx")
