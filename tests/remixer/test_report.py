import json

import torch
from torch import nn

import remixer
from remixer import LongShort


def test_the_table_names_sites_rules_and_reasons(model, inputs):
    report = remixer.remix(model, {"layers.0": LongShort(window=4), "*": None}, inputs).report
    text = str(report)
    assert "Model: 2 attentions: 1 replaced, 1 kept; grows as n^2" in text
    assert "long_short(window=4)" in text
    assert "4 heads of 8, bidirectional, padding" in text
    assert "RecogniseAttention" in text
    assert "n^2 because of" in text


def test_sites_carry_what_the_contract_names(model, inputs):
    site = remixer.remix(model, "toeplitz", inputs).report.sites[0]
    assert (site.name, site.rule, site.mixer, site.status, site.reason) == (
        "layers.0", "SoftmaxAttention", "toeplitz", "replaced", "",
    )  # fmt: skip
    assert site.source.startswith("conftest.py:")
    assert site.kind == "SelfAttention"
    assert site.spec.heads == 4
    assert site.error is not None
    assert site.error < 1e-5
    before, after = site.parameters
    assert before == 4 * (32 * 32 + 32)
    assert after < before + 20_000


def test_json_holds_everything(model, inputs):
    report = remixer.remix(model, LongShort(window=4), inputs).report
    plain = json.loads(report.to_json())
    assert plain["order"] == "n"
    assert plain["sites"][0]["spec"]["words"] == str(report.sites[0].spec)
    assert plain["sites"][0]["config"]["window"] == 4
    assert plain["sites"][0]["config"]["mixer"] == "long_short"
    assert [step["name"] for step in plain["passes"]][:2] == ["capture", "SettleWrites"]


def test_neighbours_that_are_alike_share_a_row():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 5)
    report = remixer.explain(encoder.eval(), torch.zeros(2, 8, 32))
    assert "layers.0.self_attn (and 4 alike)" in str(report)
    assert len(report.sites) == 5


def test_a_dimension_that_stays_static_is_reported_with_its_reason():
    class Fixed(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(*x.view(x.shape[0], 3, 2, 16, 4).unbind(1))

    report = remixer.explain(Fixed(), torch.zeros(2, 384))
    assert report.static == ("x dim 1 is fixed at 384: the model's own code allows this size only",)
    assert report.static[0] in str(report)


def test_two_attentions_of_one_module_get_names_of_their_own():
    class Twice(nn.Module):
        def forward(self, x):
            x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    names = [site.name for site in remixer.explain(Twice(), torch.randn(2, 9, 8)).sites]
    assert sorted(names) == ["attention", "attention[1]"]
