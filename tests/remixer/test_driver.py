import copy

import pytest
import torch
from torch import nn

import remixer
from remixer import LongShort, SoftmaxConfig, Toeplitz
from remixer.testing import assert_close, assert_order, assert_sites

MIXERS = [SoftmaxConfig(), LongShort(window=4), Toeplitz()]


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer.name)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_passed_in_is_never_changed(model, inputs, mixer, training):
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    expected = model(**inputs)
    small = remixer.remix(model, mixer, inputs)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1.0)
    assert model.training is training
    assert small.training is training
    assert_close(model.state_dict(), before)
    assert_close(model(**inputs), expected)


def test_softmax_on_every_site_is_the_identity_at_lengths_not_seen(model, inputs):
    small = remixer.remix(model, "softmax", inputs)
    for batch, length in [(1, 1), (1, 7), (3, 13), (2, 50)]:
        x = torch.randn(batch, length, 32)
        padding = torch.rand(batch, length) > 0.3
        padding[:, 0] = True
        assert_close(small(x, padding), model(x, padding))


@pytest.mark.parametrize("length", [1, 7, 20])
def test_a_window_over_everything_is_the_identity(causal_model, inputs, length):
    small = remixer.remix(causal_model, LongShort(window=20, rank=0), inputs)
    x, padding = torch.randn(2, length, 32), torch.ones(2, length, dtype=torch.bool)
    padding[1, length // 2 + 1 :] = False
    assert_close(small(x, padding), causal_model(x, padding))


def test_output_structure_and_signature_are_those_of_the_model(model, inputs):
    small = remixer.remix(model, "toeplitz", inputs)
    found = small(inputs["x"], padding=inputs["padding"])
    assert sorted(found) == ["logits", "states"]
    assert found["logits"].shape == (2, 12, 5)


def test_weights_keep_their_names_and_unused_ones_are_gone(model, inputs):
    small = remixer.remix(model, "toeplitz", inputs)
    names, kept = set(model.state_dict()), set(small.state_dict())
    gone = names - kept
    assert gone == {f"layers.{i}.{p}.{w}" for i in (0, 1) for p in ("query", "key") for w in ("weight", "bias")}
    assert all(".mixer." in name for name in kept - names)
    small.load_state_dict(model.state_dict() | small.state_dict() | {}, strict=False)
    assert torch.equal(small.state_dict()["head.weight"], model.state_dict()["head.weight"])


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer.name)
def test_the_result_trains_copies_saves_and_compiles(model, inputs, mixer, tmp_path):
    small = remixer.remix(model, mixer, inputs)
    loss = small(**inputs)["logits"].square().mean()
    loss.backward()
    missing = [name for name, parameter in small.named_parameters() if parameter.grad is None]
    assert not missing
    expected = small(**inputs)
    twin = copy.deepcopy(small)
    assert_close(twin(**inputs), expected)
    assert twin.report == small.report
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    small.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert_close(small(**inputs), expected)
    compiled = torch.compile(twin, backend="eager", dynamic=True)
    assert_close(compiled(**inputs), expected)


def test_the_result_exports_again(model, inputs):
    small = remixer.remix(model, LongShort(window=4), inputs)
    dynamic = torch.export.Dim.AUTO
    shapes = {"x": {0: dynamic, 1: dynamic}, "padding": {0: dynamic, 1: dynamic}}
    example = {"x": torch.randn(2, 40, 32), "padding": torch.ones(2, 40, dtype=torch.bool)}
    exported = torch.export.export(small, (), example, dynamic_shapes=shapes)
    longer = {"x": torch.randn(3, 61, 32), "padding": torch.rand(3, 61) > 0.2}
    assert_close(exported.module()(**longer), small(**longer))


def test_the_result_moves_to_another_device(model, inputs):
    small = remixer.remix(model, LongShort(window=4), inputs).to("meta")
    found = small(**{name: value.to("meta") for name, value in inputs.items()})
    assert found["logits"].device.type == "meta"


def test_the_result_works_in_bf16(model, inputs):
    model = model.to(torch.bfloat16)
    inputs["x"] = inputs["x"].to(torch.bfloat16)
    small = remixer.remix(model, "softmax", inputs)
    assert_close(small(**inputs), model(**inputs))
    for mixer in ("toeplitz", "long_short"):
        assert remixer.remix(model, mixer, inputs)(**inputs)["logits"].isfinite().all()


def test_a_cast_to_lower_precision_is_warned_of(model, inputs):
    """What the original computes in float32 on purpose is no longer told from the rest."""
    small = remixer.remix(model, "softmax", inputs)
    assert small.double().float().to("cpu") is small
    with pytest.warns(UserWarning, match="cast the original, then remix it"):
        small.to(torch.bfloat16)
    small.half()


@pytest.mark.parametrize(("mixer", "order"), [(LongShort(window=4), "n"), (Toeplitz(), "n log n")])
def test_nothing_quadratic_is_left(causal_model, inputs, mixer, order):
    small = remixer.remix(causal_model, mixer, inputs)
    assert small.report.order == order
    assert_order(small, order)
    with pytest.raises(AssertionError, match="grows as n"):
        assert_order(small, "1")


def test_the_first_pattern_that_matches_counts_and_none_keeps(model, inputs):
    chosen = {r"re:layers\.0": LongShort(window=4), "layers.1": None, "*": "toeplitz"}
    report = remixer.remix(model, chosen, inputs).report
    assert [(site.name, site.mixer, site.status) for site in report.sites] == [
        ("layers.0", "long_short", "replaced"),
        ("layers.1", "softmax", "kept"),
    ]
    assert report.order == "n^2"
    assert any("layers_1" in node or "matmul" in node for node in report.blamed)


def test_a_kept_site_is_bit_for_bit_what_it_was(model, inputs):
    small = remixer.remix(model, {"*": None}, inputs)
    assert torch.equal(small(**inputs)["logits"], model(**inputs)["logits"])


def test_a_size_that_is_fixed_is_refused_when_it_is_another():
    class Fixed(nn.Module):
        """A factor that is computed of the length in a run, and is that of the example in a graph."""

        def forward(self, x):
            length = x.shape[1]
            query = x[:, None] * (length.node.hint if isinstance(length, torch.SymInt) else length)
            return nn.functional.scaled_dot_product_attention(query, x[:, None], x[:, None])

    small = remixer.remix(Fixed(), "softmax", (torch.randn(2, 6, 4),))
    for module in (small, copy.deepcopy(small)):
        assert module(torch.randn(5, 6, 4)).shape == (5, 1, 6, 4)
        with pytest.raises(
            ValueError, match=r"got 7 in dim 1 of x\. x dim 1 is fixed at 6: the graph that torch.export gives"
        ):
            module(torch.randn(2, 7, 4))


def test_dropout_follows_train_and_eval():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.5, batch_first=True)
    x = torch.randn(2, 9, 32)
    for mixer in MIXERS:
        small = remixer.remix(layer.train(), mixer, (x,))
        assert small.training
        assert not torch.equal(small(x), small(x))
        small.eval()
        assert torch.equal(small(x), small(x))
    assert_close(remixer.remix(layer.eval(), "softmax", (x,))(x), layer(x))


def test_a_graph_module_and_an_exported_program_are_taken_too(inputs):
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(32, 32), nn.ReLU()))
    with pytest.raises(remixer.NoAttentionError, match="no attention found in"):
        remixer.remix(traced, "toeplitz", inputs["x"])
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    dynamic = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    exported = torch.export.export(layer, (inputs["x"],), dynamic_shapes=(dynamic,))
    small = remixer.remix(exported, "softmax")
    longer = torch.randn(1, 33, 32)
    assert_close(small(longer), layer(longer))


class Cross(nn.Module):
    """Self-attention, then attention over another sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(32, 4, batch_first=True)
        self.other = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x, memory):
        x = x + self.own(x, x, x, need_weights=False)[0]
        return x + self.other(x, memory, memory, need_weights=False)[0]


def test_cross_attention_is_kept_with_the_reason_or_refused_when_strict():
    model, inputs = Cross().eval(), (torch.randn(2, 9, 32), torch.randn(2, 13, 32))
    small = remixer.remix(model, "toeplitz", inputs)
    assert [site.status for site in small.report.sites] == ["replaced", "kept"]
    assert "cross-attention" in small.report.sites[1].reason
    with pytest.raises(
        remixer.UnsupportedAttentionError,
        match=r"cannot replace attention at other: 'toeplitz' needs as many queries as keys, this is "
        r'cross-attention\. Leave it out with \{"other": None\}',
    ):
        remixer.remix(model, "toeplitz", inputs, strict=True)
    assert remixer.remix(model, {"other": None, "*": "toeplitz"}, inputs, strict=True).report.order == "n^2"


class Biased(nn.Module):
    """Attention with a learned table for every pair of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.table = nn.Parameter(torch.zeros(4, 16, 16))

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        T = x.shape[1]
        mask = self.table[:, :T, :T]
        return nn.functional.scaled_dot_product_attention(q, k, v, mask)


def test_a_dense_bias_is_refused_by_long_short_and_kept_by_softmax():
    model, x = Biased().eval(), torch.randn(2, 12, 32)
    with torch.no_grad():
        model.table.normal_()
    with pytest.raises(remixer.UnsupportedAttentionError, match="dense bias"):
        remixer.remix(model, "long_short", (x,), strict=True)
    assert remixer.explain(model, (x,)).sites[0].spec.bias == "dense"
    assert_close(remixer.remix(model, "softmax", (x,))(x[:, :7]), model(x[:, :7]))


class TwoPaths(nn.Module):
    """Attention whose weights somebody else reads too."""

    def forward(self, x):
        weights = torch.softmax(x @ x.transpose(1, 2), -1)
        return weights @ x, weights


def test_an_attention_that_is_not_understood_is_kept_and_reported(inputs):
    report = remixer.explain(TwoPaths(), inputs["x"])
    assert [(site.status, site.spec) for site in report.sites] == [("missed", None)]
    assert "is also read by the output" in report.sites[0].reason
    with pytest.raises(remixer.NoAttentionError, match="no attention in TwoPaths was understood") as caught:
        remixer.remix(TwoPaths(), "toeplitz", inputs["x"])
    assert caught.value.report.sites == report.sites


def test_bad_input_gets_its_error_before_any_work(model, inputs, monkeypatch):
    monkeypatch.setattr("remixer.recognising.capture", lambda *_: pytest.fail("captured"))
    with pytest.raises(remixer.UnknownMixerError, match=r"no mixer named .toeplits.*Did you mean .toeplitz"):
        remixer.remix(model, "toeplits", inputs)
    with pytest.raises(remixer.MixerConfigError, match="LongShort: window must be at least 1, got 0"):
        remixer.remix(model, LongShort(window=0), inputs)
    with pytest.raises(TypeError, match="expected a mixer's name, a config"):
        remixer.remix(model, 3, inputs)
    with pytest.raises(ValueError, match="the mapping of patterns to mixers is empty"):
        remixer.remix(model, {}, inputs)


def test_a_pattern_that_selects_nothing_raises_and_says_what_there_is(model, inputs):
    with pytest.raises(remixer.SelectionError, match=r"pattern 'layer\.0' selects no attention.*'layers\.0'"):
        remixer.remix(model, {"layer.0": "toeplitz"}, inputs)


def test_inputs_that_do_not_fit_are_refused(model, inputs):
    with pytest.raises(remixer.CaptureError, match=r"don't fit Model\.forward: .*'y'"):
        remixer.remix(model, "toeplitz", {**inputs, "y": inputs["x"]})
    with pytest.raises(remixer.CaptureError, match="capture needs example inputs"):
        remixer.remix(model, "toeplitz")
    with pytest.raises(remixer.CaptureError, match="don't fit Model: it raises RuntimeError"):
        remixer.remix(model, "toeplitz", torch.randn(2, 12, 31))


def test_a_model_without_attention_is_refused(inputs):
    assert remixer.explain(nn.Linear(32, 4), inputs["x"]).sites == ()
    with pytest.raises(remixer.NoAttentionError, match="no attention found in Linear: there is nothing to replace"):
        remixer.remix(nn.Linear(32, 4), "toeplitz", inputs["x"])


def test_a_rewritten_model_is_refused(model, inputs):
    small = remixer.remix(model, "toeplitz", inputs)
    for again in (small, nn.Sequential(small)):
        with pytest.raises(remixer.AlreadyRemixedError, match="already rewritten: 'toeplitz' stands at"):
            remixer.remix(again, "long_short", inputs)
    assert remixer.explain(small) == small.report


def test_explain_changes_nothing_and_counts(model, inputs):
    before = copy.deepcopy(model.state_dict())
    report = remixer.explain(model, inputs)
    assert [site.status for site in report.sites] == ["understood", "understood"]
    assert report.order == "n^2"
    assert_close(model.state_dict(), before)
    assert_sites(model, inputs, 2, heads=4, padding=True, causal=False)


def test_the_projection_from_the_hidden_state_is_wired(model, inputs):
    small = remixer.remix(model, LongShort(window=4, project_from="source"), inputs)
    assert [site.status for site in small.report.sites] == ["replaced", "replaced"]
    assert small(**inputs)["logits"].isfinite().all()
    assert remixer.explain(model, inputs).sites[0].spec.source_dim == 32
