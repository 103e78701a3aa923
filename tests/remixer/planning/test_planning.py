import json

import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort, Plan, PlanError, Toeplitz

OPTIONS = {"progress": False, "loss": "states"}


class ByPlace(nn.Module):
    """An attention whose heads go by place only, by likeness only, or half and half."""

    def __init__(self, content):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        with torch.no_grad():
            self.q.weight.view(4, 8, 32).mul_(torch.tensor(content)[:, None, None])
            self.q.bias.zero_()
        self.register_buffer("slopes", torch.tensor([0.3, 0.6, 0.9, 1.2]))

    def forward(self, x):
        q, k, v = (p(x).unflatten(2, (4, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        places = torch.arange(x.shape[1])
        bias = -self.slopes[:, None, None] * (places[:, None] - places).abs()
        return self.o(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(ByPlace(content) for content in ([0.0] * 4, [6.0] * 4, [0.0, 0.0, 6.0, 6.0]))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return {"states": x}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Three().eval()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(2, 48, 32, generator=generator)} for _ in range(3)]


@pytest.fixture(scope="module")
def by_sites(model, data):
    given = {"mixers": [Toeplitz(decay=None)], "budget": 0.75, "length": 4096, "transfer_steps": 2}
    return remixer.plan(model, data[0], data, **given, **OPTIONS)


def test_the_attention_that_goes_by_place_is_replaced(by_sites):
    assert [site.name for site in by_sites.sites if site.configs != (None,)] == ["layers.0"]
    harms = [site.harms["toeplitz(decay=None)"] for site in by_sites.sites]
    assert harms[0] < 0.2 * harms[2] < 0.2 * harms[1] * 1.5
    assert by_sites.chosen.replaced == 1
    assert by_sites.chosen.share < 0.75
    assert [point.replaced for point in by_sites.front] == [0, 1, 2, 3]
    assert by_sites.front[0].harm == 0.0
    assert by_sites.front[-1].harm > by_sites.front[1].harm


def test_heads_of_one_attention_are_told_apart(model, data):
    given = {"mixers": [Toeplitz(decay=None)], "budget": 0.55, "transfer_steps": 2, "by_heads": True, "rounds": 1}
    plan = remixer.plan(model, data[0], data, **given, **OPTIONS)
    last = plan.sites[2]
    assert set(zip(last.groups, last.configs, strict=True)) == {((0, 1), Toeplitz(decay=None)), ((2, 3), None)}
    small = remixer.remix(model, plan, data[0])
    assert [(site.name, site.status) for site in small.report.sites] == [
        ("layers.0", "replaced"),
        ("layers.1", "kept"),
        ("layers.2[heads 0-1]", "replaced"),
        ("layers.2[heads 2-3]", "kept"),
    ]
    before = remixer.transfer(small, data, steps=40, stages=["attention"], progress=False).stages[0]
    assert set(before.losses) == {"layers.0", "layers.2[heads 0-1]"}
    assert max(before.first_and_last(site)[1] for site in before.losses) < 0.05


def test_as_much_as_a_harm_allows(model, data):
    given = {"mixers": [LongShort(window=4, sinks=0), Toeplitz(decay=None)], "transfer_steps": 2}
    little = remixer.plan(model, data[0], data, harm=1e-6, **given, **OPTIONS)
    much = remixer.plan(model, data[0], data, harm=10.0, **given, **OPTIONS)
    assert little.chosen.replaced == 0
    assert much.chosen.replaced == 3
    assert much.chosen.harm <= 10.0


def test_seconds_are_measured(model, data):
    plan = remixer.plan(model, data[0], data, mixers=[Toeplitz()], seconds=100.0, length=64, **OPTIONS)
    assert (plan.cost, plan.chosen.replaced) == ("seconds", 0)


def test_a_plan_is_json_that_can_be_compared(by_sites, tmp_path):
    file = tmp_path / "plan.json"
    by_sites.save(file)
    again = Plan.load(file)
    assert again == by_sites
    assert by_sites.diff(again) == ""
    found = json.loads(file.read_text())
    found["sites"][1]["configs"] = [{"mixer": "long_short", "window": 64}]
    other = Plan.from_json(json.dumps(found))
    assert other.sites[1].configs == (LongShort(window=64),)
    changed = [
        line for line in by_sites.diff(other).splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert len(changed) == 2
    assert "layers.1" in changed[0]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("change", "told"), [
    (lambda plan: plan.update(format=7), "format 7, this remixer reads 1"),
    (lambda plan: plan["sites"][0].update(configs=[{"mixer": "magic"}]), "no mixer named 'magic'"),
    (lambda plan: plan["sites"][0].update(configs=[{"mixer": "toeplitz", "speed": 3}]), "speed"),
    (lambda plan: plan["sites"][0].update(configs=[{"mixer": "long_short", "window": 0}]), "window must be at least"),
    (lambda plan: plan["sites"][0].update(configs=[]), "another number of configs"),
    (lambda plan: plan.pop("front"), "no plan: Plan has no 'front', or needs it"),
    (lambda plan: plan.update(sites=3), "no plan: sites: expected a list, got 3"),
])  # fmt: skip
def test_what_is_no_plan_is_refused(by_sites, change, told):
    found = json.loads(by_sites.to_json())
    change(found)
    with pytest.raises(PlanError, match=told):
        Plan.from_json(json.dumps(found))


def test_files_that_hold_no_plan(tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(PlanError, match="cannot read the plan"):
            Plan.load(tmp_path / name)


@pytest.mark.parametrize(("options", "told"), [
    ({"budget": 0.5, "harm": 0.1}, "one of budget, seconds and harm, got budget, harm"),
    ({"budget": 1.5}, "budget must lie between 0 and 1, got 1.5"),
    ({"seconds": 0.0}, "seconds must lie above 0"),
    ({"mixers": []}, "no mixer was given"),
    ({"length": 0}, "length must be at least 1"),
    ({"transfer_steps": -1}, "transfer_steps must be at least 0"),
])  # fmt: skip
def test_options_without_a_meaning_are_refused_before_the_model_is_captured(model, data, options, told, monkeypatch):
    monkeypatch.setattr("remixer.recognising.capture", None)
    with pytest.raises(PlanError, match=told):
        remixer.plan(model, data[0], data, **{"mixers": ["toeplitz"], **options}, **OPTIONS)


def test_a_budget_that_cannot_be_kept_is_refused(model, data):
    with pytest.raises(PlanError, match="is left, more than was asked"):
        remixer.plan(model, data[0], data, mixers=["toeplitz"], budget=1e-9, **OPTIONS)


def test_auto_says_what_harm_is_measured_in(model, data):
    found = remixer.plan(model, data[0], data[:1], mixers=["toeplitz"], rounds=1, progress=False)
    assert found.loss == "states"
    assert "harm in 1 - cosine of the states" in " ".join(str(found).split())


def test_mixers_that_fit_nowhere_are_told_why(data):
    inputs = {"x": torch.randn(2, 7, 32), "memory": torch.randn(2, 9, 32)}
    with pytest.raises(PlanError, match=r"toeplitz\(\): 'toeplitz' needs as many queries as keys"):
        remixer.plan(Cross().eval(), inputs, [inputs], mixers=["toeplitz"], **OPTIONS)


class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x, memory):
        q, k, v = (
            p(y).unflatten(2, (4, 8)).transpose(1, 2) for p, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_the_plan_can_be_printed_and_drawn(by_sites, tmp_path):
    told = str(by_sites)
    assert "layers.0" in told
    assert "<- this plan" in told
    by_sites.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_auto_needs_data_and_does_it_all(model, data, monkeypatch):
    with pytest.raises(ValueError, match="give data as transfer="):
        remixer.remix(model, "auto", data[0])
    monkeypatch.setattr("remixer.distillation.transferring.MINUTES", 0.02)
    small = remixer.remix(model, "auto", data[0], transfer=[{"x": one["x"]} for one in data])
    assert [site.status for site in small.report.sites].count("replaced") == 2
    assert [stage.name for stage in small.transfers[0].stages] == ["attention", "outputs"]


def test_a_plan_of_another_model_is_refused(by_sites, data):
    other = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    with pytest.raises(remixer.SelectionError, match="selects no attention"):
        remixer.remix(other, by_sites, data[0]["x"])
