import copy
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

import remixer
from remixer import ArtifactError, Distributed, LongShort, Plan, Toeplitz
from remixer.distillation.errors import TransferError
from remixer.export import partition, to_onnx
from remixer.export.artifacts.outputs import Outputs
from remixer.mixers import Mixer, MixerConfig, Softmax, registry
from remixer.planning.plan import FrontPoint, SitePlan
from remixer.rewrite.program import expression
from remixer.testing import assert_order


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, hidden, seen):
        query, key, value = (each.unflatten(-1, (4, 8)).transpose(1, 2) for each in self.qkv(hidden).chunk(3, -1))
        scores = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~seen, -torch.inf)
        return hidden + self.out((torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2))


class Reader(nn.Module):
    """A small causal model: tied ends, dropout, a buffer that isn't saved, and one that is."""

    def __init__(self, layers=2):
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(24, 32)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm, self.drop, self.head = nn.LayerNorm(32), nn.Dropout(0.3), nn.Linear(32, 50, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("shift", torch.randn(32), persistent=False)
        self.register_buffer("scale", torch.randn(32))

    def forward(self, ids, attention_mask):
        place = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.drop(self.tokens(ids) + self.places(place)) * self.scale + self.shift
        seen = attention_mask[:, None, None, :].bool() & (place <= place[:, None])
        for layer in self.layers:
            hidden = layer(hidden, seen)
        return {"logits": self.head(self.norm(hidden)), "states": hidden}


def batch(T=12, B=2):
    torch.manual_seed(T)
    return {"ids": torch.randint(0, 50, (B, T)), "attention_mask": torch.ones(B, T, dtype=torch.long)}


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return Reader().eval()


@pytest.fixture(scope="module")
def small(reader):
    return remixer.remix(reader, LongShort(window=4), batch())


def kept(model, folder, **options):
    remixer.save(model, folder, **options)
    return remixer.load(folder)


def assert_alike(one, other, inputs):
    """Same outputs in eval, same gradients under the same names in training."""
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(**inputs), other.eval()(**inputs), rtol=0, atol=0)
    found = []
    for module in (one, other):
        torch.manual_seed(1)
        module.train().zero_grad()
        module(**inputs)["logits"].float().square().sum().backward()
        found.append({name: each.grad for name, each in module.named_parameters()})
        module.eval()
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=0, atol=0)


def test_a_loaded_model_is_what_was_saved(small, tmp_path):
    small.train()
    small.drop.eval()
    twin = kept(small, tmp_path / "a")
    assert twin.training
    assert not twin.drop.training
    small.train()
    assert isinstance(twin, remixer.Remixed)
    assert twin.code == small.code
    assert list(twin.state_dict()) == list(small.state_dict())
    assert "shift" not in twin.state_dict()
    assert twin.get_parameter("head.weight") is twin.get_parameter("tokens.weight")
    assert twin.report == small.report
    assert str(twin.report) == str(small.report)
    assert remixer.explain(twin) is twin.report
    assert_alike(twin, small, batch(20, 3))
    twin.train()
    twin.drop.eval()
    for other in (copy.deepcopy(twin), kept(twin, tmp_path / "b")):
        assert_alike(other, small, batch(9))
    names = sorted(file.name.split(".")[0] for file in (tmp_path / "a").iterdir())
    assert names == ["example", "graph", "remixer", "weights"]
    assert {file.name for file in (tmp_path / "a").iterdir()} == {file.name for file in (tmp_path / "b").iterdir()}


def test_what_is_known_of_the_nodes_is_kept(small, tmp_path):
    twin = kept(small, tmp_path / "a")
    for one, other in zip(small.graph.nodes, twin.graph.nodes, strict=True):
        assert (one.name, one.op) == (other.name, other.op)
        assert one.meta.get("site") == other.meta.get("site")
        assert one.meta.get("origin") == other.meta.get("origin")
        mine, theirs = one.meta.get("val"), other.meta.get("val")
        if isinstance(mine, torch.Tensor):
            assert tuple(map(expression, mine.shape)) == tuple(map(expression, theirs.shape))
            assert mine.dtype == theirs.dtype
    known, again = small.meta["program"], twin.meta["program"]
    for name in ("batch", "length", "limits", "static", "notes", "extended"):
        assert known[name] == again[name], name
    assert_order(twin, "n")


def test_it_can_be_used_like_one_that_was_just_made(small, reader, tmp_path):
    twin = kept(small, tmp_path / "a", original=True)
    ids = batch(8)["ids"]
    wanted = remixer.generate(small, ids, 6)
    assert torch.equal(remixer.generate(twin, ids, 6), wanted)
    assert to_onnx(twin, tmp_path / "model.onnx").error < 1e-3
    report = remixer.transfer(twin, [batch(), batch(16)], steps=4, progress=False)
    again = kept(twin, tmp_path / "a", original=True)
    assert again.transfers == (report,)
    assert_alike(again, twin, batch(20))
    with torch.no_grad():
        torch.testing.assert_close(
            dict(again.original.graph_module(**batch(15))), reader(**batch(15)), rtol=1e-4, atol=1e-5
        )
    sites = [site.name for site in twin.report.sites]
    back = remixer.restore(again)
    with torch.no_grad():
        torch.testing.assert_close(back(**batch(15)), reader(**batch(15)), rtol=1e-4, atol=1e-5)
    half = remixer.restore(again, sites[0])
    assert [site.status for site in half.report.sites] == ["kept", "replaced"]
    with torch.no_grad():
        found, all_back, none_back = (each(**batch(15))["logits"] for each in (half, back, again))
    assert not torch.allclose(found, all_back, atol=1e-4)
    assert not torch.allclose(found, none_back, atol=1e-4)
    twin_again = kept(half, tmp_path / "half", original=True)
    assert_alike(twin_again, half, batch(15))


def test_without_its_original_it_says_so(small, tmp_path):
    twin = kept(small, tmp_path / "a")
    assert twin.original is None
    with pytest.raises(TransferError, match=r"saved without it.*original=True"):
        remixer.transfer(twin, [batch()], steps=1)
    with pytest.raises(remixer.NoOriginalError, match=r"saved without it. Save it with original=True"):
        remixer.restore(twin)
    with pytest.raises(ArtifactError, match="no longer knows the one it was made from"):
        remixer.save(twin, tmp_path / "b", original=True)
    with pytest.raises(remixer.SelectionError, match=r"'layer\.9' selects no attention"):
        remixer.restore(small, "layer.9")


@pytest.mark.parametrize("mixer", [Toeplitz(), Toeplitz(gate="value"), Distributed(), "softmax", "frequency_toeplitz"])
def test_all_mixers(reader, mixer, tmp_path):
    model = remixer.remix(reader, mixer, batch())
    assert_alike(kept(model, tmp_path / "a"), model, batch(21))


def test_longer_split_and_lower_precision(reader, tmp_path):
    names = [site.name for site in remixer.explain(reader, batch()).sites]
    split = SitePlan(names[0], ((0, 2), (1, 3)), (LongShort(window=4), None))
    whole = SitePlan(names[1], ((0, 1, 2, 3),), (Toeplitz(),))
    plan = Plan((split, whole), (FrontPoint(0.5, 0.1, 2, chosen=True),), 64, "flops", "logits")
    model = remixer.remix(reader, plan, batch(), max_length=80)
    twin = kept(model, tmp_path / "a", original=True)
    assert twin.report.extended == model.report.extended != ()
    assert_alike(twin, model, batch(70))
    back = remixer.restore(twin, f"{names[0]}*")
    with torch.no_grad():
        assert back(**batch(70))["logits"].shape == (2, 70, 50)
    with pytest.warns(UserWarning, match="captured in higher precision"):
        half = copy.deepcopy(model).bfloat16()
    assert_alike(kept(half, tmp_path / "b"), half, batch(15))
    assert {each.dtype for each in kept(half, tmp_path / "b").parameters()} == {torch.bfloat16}


def test_a_loaded_model_is_partitioned(reader, tmp_path):
    model = kept(remixer.remix(reader, Distributed(), batch()), tmp_path / "a")
    part = partition(model, 2, scheme="all_gather")
    assert part.plan.error < 1e-4
    part.save(tmp_path / "parts")


@dataclass(frozen=True)
class Scaled(MixerConfig):
    """Of a mixer of somebody else."""

    name = "scaled"
    factors: tuple[float, ...] = (1.0,)


class ScaledMixer(Mixer):
    """The attention times a factor; its constructor needs numbers, which tensors without memory don't have."""

    Config = Scaled
    order = "n^2"

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.alone = Softmax(spec)
        self.gain = nn.Parameter(torch.tensor(config.factors).prod())
        self.start = float(self.gain)

    @classmethod
    def supports(cls, spec, config):
        return None

    def forward(self, query=None, key=None, value=None, **others):
        return self.gain * self.alone(query, key, value, **others)

    reference = forward


def test_a_mixer_of_somebody_else(reader, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(registry._MIXERS, "scaled", ScaledMixer)
        model = remixer.remix(reader, Scaled((2.0, 0.25)), batch())
        twin = kept(model, tmp_path / "a")
        assert [each.start for each in twin.modules() if isinstance(each, ScaledMixer)] == [0.5, 0.5]
        assert_alike(twin, model, batch(15))
    with pytest.raises(
        ArtifactError, match=r"layers\.0\.mixer is a mixer that is not installed here: no mixer named 'sca"
    ):
        remixer.load(tmp_path / "a")


class Pair(NamedTuple):
    """What a model may give."""

    first: torch.Tensor
    second: torch.Tensor


class Paired(nn.Module):
    def __init__(self, reader):
        super().__init__()
        self.reader = reader

    def forward(self, ids, attention_mask):
        found = self.reader(ids, attention_mask)
        constant = torch.tensor([0.5, 2.0])  # lifted out of the graph, to a buffer that isn't saved
        return Pair(found["logits"], found["states"]), [(found["states"][..., :2] * constant).mean()]


def test_outputs_of_other_shapes(reader, tmp_path):
    model = remixer.remix(Paired(reader), LongShort(window=4), batch())
    twin = kept(model, tmp_path / "a")
    (wanted, [mean]), (found, [again]) = model(**batch(15)), twin(**batch(15))
    assert type(found).__name__ == "Pair"
    assert torch.equal(found.first, wanted.first)
    assert torch.equal(found.second, wanted[1])
    assert torch.equal(mean, again)
    (found, _) = kept(twin, tmp_path / "b")(**batch(15))
    assert torch.equal(found.first, wanted.first)


LOADS = """
import json, sys
sys.modules["transformers"] = None  # not to be had
import torch, remixer
model = remixer.load(sys.argv[1])
out = model(input_ids=torch.arange(40)[None] % 64)
print(json.dumps([type(out).__name__, list(out), out.last_hidden_state.sum().item(), out[0].shape[1],
                  str(model.report).splitlines()[0]]))
remixer.save(model, sys.argv[2])
"""


def test_without_the_library_of_the_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    ids = torch.arange(40)[None] % 64
    small = remixer.remix(model, LongShort(window=4), {"input_ids": ids})
    remixer.save(small, tmp_path / "a")
    found = subprocess.run(
        [sys.executable, "-c", LOADS, tmp_path / "a", tmp_path / "b"], capture_output=True, text=True, check=True
    )
    kind, names, total, length, head = json.loads(found.stdout)
    with torch.no_grad():
        wanted = small(input_ids=ids)
    assert (kind, names, length) == ("Outputs", ["last_hidden_state"], 40)
    assert total == pytest.approx(float(wanted.last_hidden_state.sum()), abs=1e-3)
    assert head.startswith("BertModel: 2 attentions: 2 replaced")
    for folder in ("a", "b"):  # saved where the library is, and where it isn't
        given = remixer.load(tmp_path / folder)(input_ids=ids)
        assert type(given) is type(wanted)
        torch.testing.assert_close(given.last_hidden_state, wanted.last_hidden_state)


def test_outputs_by_name():
    given = Outputs([("logits", 1), ("states", 2)], "a.B")
    assert (given.logits, given["states"], given[0], given[-1], given[:2]) == (1, 2, 1, 2, (1, 2))
    assert copy.deepcopy(given) == given
    with pytest.raises(AttributeError, match="have no 'loss', but logits, states"):
        _ = given.loss


def test_what_cannot_be_saved(small, reader, tmp_path):
    with pytest.raises(ArtifactError, match=r"takes what remixer\.remix gave, got Reader"):
        remixer.save(reader, tmp_path / "a")
    with pytest.raises(ArtifactError, match="there is no folder"):
        remixer.save(small, tmp_path / "none" / "a")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file: give a folder"):
        remixer.save(small, tmp_path / "file")
    hooked = copy.deepcopy(small)
    hooked.get_submodule("drop").register_forward_hook(lambda *_: None)
    with pytest.raises(ArtifactError, match=r"can't save this model: drop has hooks"):
        remixer.save(hooked, tmp_path / "a")
    odd = copy.deepcopy(small)
    odd.extra = nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match=r"the Linear at extra can't be written"):
        remixer.save(odd, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ArtifactError, match=r"there is no remixer.json in .*a: remixer.save writes one"):
        remixer.load(tmp_path / "a")


SAVES = """
import sys, torch, remixer
from remixer.export.artifacts import folder
model = remixer.load(sys.argv[1])
with torch.no_grad():
    for each in model.parameters():
        each.add_(1.0)
replace, left = folder.os.replace, [int(sys.argv[2])]
def slowly(*args):
    left[0] -= 1
    if not left[0]:
        print("now", flush=True)
        import time; time.sleep(600)
    return replace(*args)
folder.os.replace = slowly
remixer.save(model, sys.argv[1])
"""


@pytest.mark.parametrize("moment", [2, 7])  # while files are written; after all but the manifest are in their places
def test_a_killed_save_leaves_the_old_artifact(small, tmp_path, moment):
    folder = tmp_path / "a"
    remixer.save(small, folder)
    before = {file.name for file in folder.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-c", SAVES, folder, str(moment)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "now\n"
        with pytest.raises(ArtifactError, match="another process is saving to"):
            remixer.save(small, folder)
        process.send_signal(signal.SIGKILL)
    left = {file.name for file in folder.iterdir()}
    assert left > before, "it was killed in the middle"
    assert_alike(remixer.load(folder), small, batch(15))
    remixer.save(small, folder)
    assert {file.name for file in folder.iterdir()} == before, "nothing is left of what was cut off"
