"""The real MiniLM and SmolLM2, in both spellings of attention."""

import copy

import pytest
import torch
from pretrained import minilm, padded_batch, smollm2

import remixer
from remixer import LongShort, SoftmaxConfig, Toeplitz
from remixer.testing import assert_close, assert_order

LENGTHS = [(1, 1, False), (2, 7, True), (3, 61, False)]


def load(name, attention):
    return (minilm if name == "minilm" else smollm2)(attention)[0]


FORMS = [
    ("minilm", "sdpa"),
    ("minilm", "eager"),
    ("smollm2", "sdpa"),
    pytest.param(("smollm2", "eager"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: "-".join(form))
def original(request):
    return load(*request.param)


@pytest.fixture(scope="module")
def inputs():
    return padded_batch(2, 32, 20000)


def test_every_attention_is_understood_as_the_config_says(original, inputs, captured_once):
    config = original.config
    report = captured_once.explain(original, inputs)
    assert len(report.sites) == config.num_hidden_layers
    for site in report.sites:
        spec = site.spec
        assert site.error < 1e-5
        assert spec.heads == config.num_attention_heads
        assert spec.kv_heads == getattr(config, "num_key_value_heads", spec.heads)
        assert spec.head_dim == spec.value_dim == config.hidden_size // spec.heads
        assert spec.scale == pytest.approx(spec.head_dim**-0.5)
        assert spec.causal is (config.model_type == "llama")
        assert spec.padding
        assert spec.bias == "none"
        assert not spec.windowed
        assert not spec.cross
        assert spec.source_dim == config.hidden_size
        assert spec.dropout == pytest.approx(getattr(config, "attention_probs_dropout_prob", 0.0))
    assert report.order == "n^2"
    assert not report.static


@pytest.mark.parametrize("mixer", [SoftmaxConfig(), LongShort(window=64, rank=0)], ids=lambda mixer: mixer.name)
def test_exact_rewrites_reproduce_the_original(original, inputs, mixer, captured_once):
    small = captured_once.remix(original, mixer, inputs, strict=True)
    for rows, length, left in LENGTHS:
        batch = padded_batch(rows, length, 20000, left=left, seed=length)
        with torch.no_grad():
            expected, actual = original(**batch), small(**batch)
        assert type(actual) is type(expected)
        assert_close(actual[0], expected[0], where=batch["attention_mask"].bool())


@pytest.mark.parametrize(("mixer", "order"), [(LongShort(window=16), "n"), (Toeplitz(), "n log n")])
def test_no_node_is_quadratic_any_more(original, inputs, mixer, order, captured_once):
    before = sum(parameter.numel() for parameter in original.parameters())
    small = captured_once.remix(original, mixer, inputs, strict=True)
    assert small.report.order == order
    assert_order(small, order)
    assert all(site.status == "replaced" for site in small.report.sites)
    batch = padded_batch(2, 61, 20000)
    with torch.no_grad():
        found = small(**batch)[0]
    assert found.isfinite().all()
    assert sum(parameter.numel() for parameter in original.parameters()) == before
    if mixer.name == "toeplitz":
        assert not any(".q_proj." in key or ".query." in key for key in small.state_dict())


def test_the_original_keeps_weights_and_outputs(inputs):
    original = load("minilm", "sdpa")
    before = copy.deepcopy(original.state_dict())
    with torch.no_grad():
        expected = original(**inputs).last_hidden_state
        small = remixer.remix(original, "toeplitz", inputs)
        for parameter in small.parameters():
            parameter.zero_()
        assert torch.equal(original(**inputs).last_hidden_state, expected)
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())


def test_kept_weights_load_into_the_original_again(inputs):
    original = load("minilm", "sdpa")
    small = remixer.remix(original, LongShort(window=16), inputs)
    kept = {key: value for key, value in small.state_dict().items() if ".mixer." not in key}
    assert set(kept) == set(original.state_dict())
    copy.deepcopy(original).load_state_dict(kept, strict=True)
