import copy
import json
import math

import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort, Program, SoftmaxConfig, Toeplitz, TransferError
from remixer.distillation.attention_stage import AttentionStage
from remixer.passes.sites import sites_of
from remixer.rewrite.inputs import as_call

STEPS = {"stages": ["attention"], "progress": False}


class Peaked(nn.Module):
    """Two layers of attention that look for likeness, a head, outputs by name."""

    def __init__(self, causal=False):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(Layer(causal) for _ in range(2))
        self.head = nn.Linear(32, 50)

    def forward(self, ids, mask=None):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x, mask)
        return {"logits": self.head(x)}


class Layer(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        with torch.no_grad():
            self.q.weight.mul_(3.0)

    def forward(self, x, mask):
        q, k, v = (p(x).unflatten(2, (4, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        T = x.shape[1]
        allowed = torch.ones(T, T, dtype=torch.bool, device=x.device)
        allowed = (allowed.tril() if self.causal else allowed)[None, None]
        if mask is not None:
            allowed = allowed & mask[:, None, None, :].bool()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.o(mixed.transpose(1, 2).flatten(2))


def batches(count, seed=0, tokens=24):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        mask = torch.ones(2, tokens, dtype=torch.long)
        mask[1, tokens - 5 :] = 0
        found.append({"ids": torch.randint(0, 50, (2, tokens), generator=generator), "mask": mask})
    return found


@pytest.fixture
def decoder():
    return Peaked(causal=True).eval()


def test_attention_transfer_moves_the_mixers_only_and_brings_them_nearer(decoder):
    data, small = batches(6), None
    small = remixer.remix(decoder, LongShort(window=4, sinks=1), data[0])
    before = {name: each.clone() for name, each in small.state_dict().items()}
    report = remixer.transfer(small, data, steps=60, **STEPS)
    assert [stage.name for stage in report.stages] == ["attention"]
    for site in report.stages[0].losses:
        first, last = report.stages[0].first_and_last(site)
        assert last < 0.97 * first, site
    moved = {name for name, each in small.state_dict().items() if not torch.equal(each, before[name])}
    assert moved
    assert all(".mixer." in name for name in moved)
    assert small.transfers == (report,)


@pytest.mark.parametrize(("config", "factor"), [
    (LongShort(window=1, rank=0, sinks=0), 0.8),
    (Toeplitz(gate="value"), 0.95),
    (Toeplitz(gate="query", learn_decay=True, per="head"), 0.95),
])  # fmt: skip
def test_output_distillation_brings_outputs_nearer(decoder, config, factor):
    data, held = batches(6), batches(2, seed=1)
    small = remixer.remix(decoder, config, data[0])
    options = {"stages": ["outputs"], "learning_rate": 10.0, "progress": False}
    report = remixer.transfer(small, data, steps=40, validation=held, **options)
    first, last = report.stages[0].first_and_last("outputs")
    assert last < factor * first
    with torch.no_grad():
        logits, wanted = (one(**held[0])["logits"].log_softmax(-1) for one in (small, decoder))
    reached = ((wanted.exp() * (wanted - logits)).sum(-1) * held[0]["mask"]).sum() / held[0]["mask"].sum()
    assert float(reached) < first, "adapters are merged"


@pytest.mark.parametrize("config", [Toeplitz(), Toeplitz(gate="value"), Toeplitz(normalise=False, gate="query")])
def test_closed_forms_start_nearer_than_chance(decoder, config):
    data = batches(4)
    small = remixer.remix(decoder, config, data[0])
    stage = AttentionStage(small.original, {site.name: site.mixer for site in sites_of(Program.of(small))})
    before = stage.measure(as_call(data[0]))
    stage.start([as_call(each) for each in data], 4)
    after = stage.measure(as_call(data[0]))
    assert all(after[site] < before[site] for site in before)


def test_the_original_stays_as_it_was(decoder):
    data = batches(3)
    before = copy.deepcopy(decoder.state_dict())
    small = remixer.remix(decoder, Toeplitz(), data[0])
    remixer.transfer(small, data, steps=6, progress=False)
    assert all(torch.equal(each, before[name]) for name, each in decoder.state_dict().items())
    assert all(each.requires_grad for each in small.parameters())
    assert all(each.grad is None for each in small.parameters())


def test_the_teacher_is_the_model_itself(decoder):
    data = batches(1)
    small = remixer.remix(decoder, "toeplitz", data[0])
    expected = decoder(**data[0])["logits"]
    torch.testing.assert_close(small.original.graph_module(**data[0])["logits"], expected)
    assert len(small.original.graph.nodes) < 2 * len(small.graph.nodes)


def test_exact_mixers_have_nothing_to_learn(decoder):
    data = batches(2)
    small = remixer.remix(decoder, SoftmaxConfig(), data[0])
    report = remixer.transfer(small, data, steps=4, progress=False)
    assert [stage.name for stage in report.stages] == ["outputs"]
    assert max(report.stages[0].losses["outputs"]) < 1e-6
    with pytest.raises(TransferError, match="nothing to train"):
        remixer.transfer(small, data, steps=4, rank=0, progress=False)


def test_the_same_seed_gives_the_same_numbers(decoder):
    data = batches(3)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        small = remixer.remix(decoder, LongShort(window=4), data[0])
        report = remixer.transfer(small, data, steps=10, progress=False)
        found.append((report.stages[0].losses, report.stages[1].losses, small.state_dict()))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(each, found[1][2][name]) for name, each in found[0][2].items())


class KilledError(Exception):
    """In the place of what ends a process."""


def test_a_killed_transfer_goes_on_from_its_checkpoint(decoder, tmp_path):
    data = batches(4)

    def small():
        torch.manual_seed(5)
        return remixer.remix(decoder, LongShort(window=4), data[0])

    options = {"steps": 20, "save_every": 0.0, "progress": False}
    whole = remixer.transfer(one := small(), data, **options)
    file = tmp_path / "reached.safetensors"
    for after in (3, 9):  # counted from the start, closed-form starts and what is skipped included
        with pytest.raises(KilledError):
            remixer.transfer(small(), Dying(data, after), checkpoint=file, **options)
    again = remixer.transfer(two := small(), data, checkpoint=file, **options)
    assert again.stages[0].losses == whole.stages[0].losses
    assert again.stages[1].losses == whole.stages[1].losses
    for name, each in one.state_dict().items():
        torch.testing.assert_close(each, two.state_dict()[name], rtol=0, atol=0)
    third = remixer.transfer(small(), data, checkpoint=file, **options)
    assert third.stages[0].losses == whole.stages[0].losses, "what is over isn't begun again"


class Dying:
    """Data that ends the process after so many batches."""

    def __init__(self, data, after):
        self.data, self.left = data, after

    def __iter__(self):
        for one in self.data:
            if self.left == 0:
                raise KilledError
            self.left -= 1
            yield one


def test_a_checkpoint_of_another_transfer_is_refused(decoder, tmp_path):
    data, file = batches(2), tmp_path / "reached.safetensors"
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    remixer.transfer(small, data, steps=2, checkpoint=file, **STEPS)
    other = remixer.remix(decoder, LongShort(window=8), data[0])
    with pytest.raises(TransferError, match="of another transfer: mixers was"):
        remixer.transfer(other, data, steps=2, checkpoint=file, **STEPS)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(TransferError, match="cannot read the checkpoint"):
        remixer.transfer(small, data, steps=2, checkpoint=file, **STEPS)
    with pytest.raises(TransferError, match="there is no folder"):
        remixer.transfer(small, data, steps=2, checkpoint=tmp_path / "none" / "file", **STEPS)


def test_it_stops_on_a_plateau_and_on_time(decoder):
    data, held = batches(4), batches(1, seed=3)
    small = remixer.remix(decoder, Toeplitz(), data[0])
    report = remixer.transfer(small, data, steps=400, validation=held, patience=1, learning_rate=1e-9, **STEPS)
    assert report.stages[0].steps == 10
    report = remixer.transfer(small, data, minutes=1e-4, **STEPS)
    assert report.stages[0].steps <= 3


def test_it_stops_where_nothing_is_left_to_learn(decoder):
    data = batches(3)
    small = remixer.remix(decoder, LongShort(window=24), data[0])
    report = remixer.transfer(small, data, steps=100, progress=False)
    assert [stage.steps for stage in report.stages] == [4, 4], "all batches, and what tells that these were all"
    report = remixer.transfer(small, [*data, *batches(1, tokens=60)], steps=20, progress=False)
    assert [stage.steps for stage in report.stages] == [7, 13], "one of the batches is longer than the window"
    report = remixer.transfer(small, data, steps=8, loss=lambda given, wanted, exist: given["logits"].sum() * 1e-9)
    assert report.stages[1].steps == 5, "of a function nobody knows what is small"


def test_data_that_can_be_gone_through_once_ends_the_training(decoder):
    data = batches(5)
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    report = remixer.transfer(small, iter(data), steps=100, **STEPS)
    assert report.stages[0].steps == 5


@pytest.mark.parametrize(("options", "told"), [
    ({"minutes": 0.0}, "minutes must be above 0, got 0.0"),
    ({"steps": -1}, "steps must be above 0, got -1"),
    ({"stages": ["all"]}, "stages must be some of attention, outputs, got"),
    ({"rank": -1}, "rank can't be negative"),
    ({"learning_rate": 0.0}, "learning_rate is a factor above 0"),
    ({"loss": "mse"}, "loss must be one of auto, logits, states, mean or a function, got 'mse'"),
    ({"patience": 2}, "there is none"),
])  # fmt: skip
def test_options_without_a_meaning_are_refused_before_any_work(decoder, options, told):
    data = batches(1)
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    with pytest.raises(TransferError, match=told):
        remixer.transfer(small, data, **{"steps": 1, "progress": False, **options})


def test_data_that_does_not_fit_is_refused(decoder):
    data = batches(1)
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    with pytest.raises(TransferError, match="the data holds no batch"):
        remixer.transfer(small, [], steps=1, **STEPS)
    with pytest.raises(TransferError, match=r"0 by place and ids by name; .* remixed with 0 by place and ids, mask"):
        remixer.transfer(small, [{"ids": data[0]["ids"]}], steps=1, **STEPS)
    with pytest.raises(TransferError, match=r"takes what remixer\.remix gave, got Peaked"):
        remixer.transfer(decoder, data, steps=1, **STEPS)


def test_a_loss_that_is_not_finite_ends_it_with_its_site(decoder):
    data = batches(1)
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    with torch.no_grad():
        small.get_parameter("layers.1.mixer.pooling").fill_(math.nan)
    with pytest.raises(TransferError, match=r"the loss of layers\.1 is nan at step 1"):
        remixer.transfer(small, data, steps=1, **STEPS)


def test_outputs_without_names_need_a_loss():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    data = [torch.randn(2, 20, 32) for _ in range(2)]
    small = remixer.remix(layer, LongShort(window=4, sinks=0), data[0])
    with pytest.raises(TransferError, match="no name that tells"):
        remixer.transfer(small, data, steps=2, stages=["outputs"], progress=False)
    for loss in ("states", "mean", lambda given, wanted, exist: (given - wanted).square().mean()):
        report = remixer.transfer(small, data, steps=2, stages=["outputs"], loss=loss, progress=False)
        assert report.stages[0].steps == 2


def test_mixers_of_low_precision_learn_in_float32(decoder):
    data = batches(4)
    model = copy.deepcopy(decoder).to(torch.bfloat16)
    small = remixer.remix(model, Toeplitz(gate="value"), data[0])
    report = remixer.transfer(small, data, steps=60, progress=False)
    assert small.get_parameter("layers.0.mixer.encoder.last.weight").dtype == torch.bfloat16
    for site in report.stages[0].losses:
        first, last = report.stages[0].first_and_last(site)
        assert last < first


def test_a_copy_shares_the_original_and_a_pickle_loses_it(decoder, tmp_path):
    data = batches(1)
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    twin = copy.deepcopy(small)
    assert twin.original is small.original
    remixer.transfer(twin, data, steps=1, **STEPS)
    twin.meta["original"] = None
    with pytest.raises(TransferError, match="no longer knows the one it was made from"):
        remixer.transfer(twin, data, steps=1, **STEPS)


def test_the_report_can_be_printed_and_drawn(decoder, tmp_path):
    data = batches(2)
    small = remixer.remix(decoder, LongShort(window=4), data[0])
    report = remixer.transfer(small, data, steps=6, progress=False)
    told = str(report)
    assert "attention: 2 steps" in told
    assert "layers.0" in told
    assert json.loads(report.to_json())["outputs"]["steps"] == 4
    report.plot(tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000


class Table(nn.Module):
    """Learned positions that end at 30 tokens."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(50, 32), nn.Embedding(30, 32)
        self.layer = Layer(causal=False)
        self.register_buffer("numbers", torch.arange(30)[None], persistent=False)

    def forward(self, ids):
        x = self.words(ids) + self.places(self.numbers[:, : ids.shape[1]])
        return {"states": x + self.layer(x, None)}


def test_data_may_be_as_long_as_the_rewritten_model_takes():
    data = [{"ids": torch.randint(0, 50, (2, 20))}, {"ids": torch.randint(0, 50, (2, 70))}]
    small = remixer.remix(Table().eval(), LongShort(window=4), data[0], max_length=100)
    report = remixer.transfer(small, data, steps=8, progress=False)
    assert [stage.steps for stage in report.stages] == [3, 5]
    short = remixer.remix(Table().eval(), LongShort(window=4), data[0])
    with pytest.raises(TransferError, match="has 70 in dim 1 of ids, longer than the 30 that the model takes"):
        remixer.transfer(short, data, steps=8, progress=False)


@pytest.mark.parametrize(("positions", "learned"), [("interpolate", True), ("repeat", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_stretched_by_interpolation_are_learned(positions, learned, dtype):
    torch.manual_seed(0)
    model = Table().eval().to(dtype)
    data = [{"ids": torch.randint(0, 50, (4, tokens))} for tokens in (20, 30, 9)]
    small = remixer.remix(model, LongShort(window=64), data[0], max_length=100, positions=positions)
    before = small.get_parameter("places.weight").detach().clone()
    names = {name: each.detach().clone() for name, each in small.named_parameters() if name != "places.weight"}
    report = remixer.transfer(small, data, steps=60, stages=["outputs"], rank=0, progress=False)
    assert torch.equal(small.get_parameter("places.weight"), before) != learned
    assert all(torch.equal(small.get_parameter(name), each) for name, each in names.items() if "mixer" not in name)
    assert small.get_parameter("places.weight").requires_grad
    if learned and dtype == torch.float32:
        losses = report.stages[0].losses["outputs"]
        assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
