"""Mixers inside models of transformers."""

import copy
import pickle

import pytest
import torch

import remixer
from remixer import AlreadyRemixedError, InPlaceError, LongShort
from remixer.rewrite.inputs import tensors_in
from remixer.testing import assert_close

MIXERS = {"long_short": LongShort(window=8, segment=4, memory=3), "toeplitz": remixer.Toeplitz(gate="query")}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


EACH = [
    ("llama", "long_short"),
    slow("llama", "toeplitz"),
    ("gpt2", "toeplitz"),
    slow("mistral", "toeplitz"),
    ("gemma2", "long_short"),
    ("bert", "long_short"),
    slow("vit", "toeplitz"),
]


def near(actual, expected):
    """Whether two tensors, or lists of them, agree through the depth of a model."""
    for got, wanted in zip(tensors_in(actual), tensors_in(expected), strict=True):
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def outputs(model, inputs):
    with torch.no_grad():
        return tensors_in(model(**inputs, **({"use_cache": False} if "input_ids" in inputs else {})))


@pytest.mark.parametrize(("family", "mixer"), EACH)
def test_it_gives_what_the_graph_gives(tiny, inputs, family, mixer):
    model = tiny(family)
    before = [outputs(model, inputs(family))]
    torch.manual_seed(3)
    graph = remixer.remix(model, MIXERS[mixer], inputs(family), strict=True)
    torch.manual_seed(3)
    assert remixer.remix(model, MIXERS[mixer], inputs(family), strict=True, in_place=True) is model
    texts = [{}, {"rows": 3, "tokens": 61, "padded": 9}, {"rows": 1, "tokens": 5}, {"padded": 3, "left": False}]
    for sizes in texts[: 1 if family == "vit" else 4]:
        given = inputs(family, **sizes)
        with torch.no_grad():
            expected = tensors_in(graph(**given))
        near(outputs(model, given), expected)
    assert not torch.allclose(outputs(model, inputs(family))[0], before[0][0], atol=1e-3)


def test_the_mixers_belong_to_the_model(tiny, inputs):
    model = tiny("llama")
    count = len(model.state_dict())
    remixer.remix(model, MIXERS["long_short"], inputs(), in_place=True)
    names = [f"model.layers.{layer}.self_attn.mixer.{name}" for layer in (0, 1) for name in ("pooling", "summary_bias")]
    assert sorted(name for name in model.state_dict() if ".mixer." in name) == sorted(names)
    assert len(model.state_dict()) == count + 4
    ids = inputs(tokens=40)
    model.train()(**ids, labels=ids["input_ids"]).loss.backward()
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
    assert remixer.explain(model).sites[0].mixer == "long_short"
    with pytest.raises(AlreadyRemixedError, match=r"remixer\.undo gives it back"):
        remixer.remix(model, "toeplitz", inputs())


@pytest.mark.parametrize(("family", "mixer", "options"), [
    ("llama", "long_short", {}),
    slow("llama", "long_short", {"num_beams": 3}),
    slow("llama", "toeplitz", {"prompt_lookup_num_tokens": 3}),
    slow("gpt2", "toeplitz", {}),
    slow("mistral", "long_short", {}),
    slow("gemma2", "long_short", {}),
])  # fmt: skip
def test_generate_with_a_cache_gives_what_it_gives_without(tiny, inputs, family, mixer, options):
    rows = 1 if "prompt_lookup_num_tokens" in options else 3  # drafts are for one row
    prompt = inputs(rows=rows, tokens=13)
    model = remixer.remix(tiny(family), MIXERS[mixer], inputs(family), strict=True, in_place=True)
    given = {**prompt, "max_new_tokens": 24, "do_sample": False, **options}
    plain = {**prompt, "max_new_tokens": 24, "do_sample": False, "num_beams": options.get("num_beams", 1)}
    assert torch.equal(model.generate(**given), model.generate(**plain, use_cache=False))


@pytest.mark.parametrize("family", ["llama", slow("gemma2"), slow("gpt-oss")])
def test_kept_attentions_are_the_models_own(tiny, inputs, family):
    model = tiny(family)
    chosen = {"*.1.*": MIXERS["toeplitz"], "*": None}
    torch.manual_seed(3)
    graph = remixer.remix(model, chosen, inputs())
    torch.manual_seed(3)
    remixer.remix(model, chosen, inputs(), in_place=True)
    assert [site.status for site in remixer.explain(model).sites] == ["kept", "replaced"]
    given = inputs(rows=3, tokens=33)
    there = given["attention_mask"].bool()
    near(outputs(model, given)[0][there], graph(**given).logits[there])
    whole = model.generate(**given, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(**given, max_new_tokens=12, do_sample=False), whole)


@pytest.mark.parametrize("family", ["llama", slow("gemma2")])
def test_undo_gives_the_model_back(tiny, inputs, family):
    model = tiny(family)
    config, expected, names = model.config.to_dict(), outputs(model, inputs()), list(model.state_dict())
    form = model.config._attn_implementation
    remixer.remix(model, "long_short", inputs(), in_place=True)
    assert remixer.undo(model) is model
    assert (model.config.to_dict(), model.config._attn_implementation) == (config, form)
    assert list(model.state_dict()) == names
    assert_close(outputs(model, inputs()), expected)
    with pytest.raises(InPlaceError, match="has no mixers inside"):
        remixer.undo(model)
    remixer.remix(model, "toeplitz", inputs())


def test_it_is_saved_and_read(tiny, inputs, tmp_path):
    from transformers import AutoModelForCausalLM

    model = remixer.remix(tiny("llama"), {"*.0.*": MIXERS["toeplitz"], "*": None}, inputs(), in_place=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path)
    again = remixer.from_pretrained(AutoModelForCausalLM, tmp_path)
    assert torch.equal(outputs(again, inputs())[0], outputs(model, inputs())[0])
    assert again.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(InPlaceError, match=r"has no mixer.*remixer\.from_pretrained"):
        AutoModelForCausalLM.from_pretrained(tmp_path)(**inputs())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert_close(outputs(plain, inputs()), outputs(remixer.undo(model), inputs()))
    with pytest.raises(InPlaceError, match=r"has no config\.json"):
        remixer.from_pretrained(AutoModelForCausalLM, tmp_path / "other")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(InPlaceError, match="was saved without mixers inside"):
        remixer.from_pretrained(AutoModelForCausalLM, tmp_path / "plain")


def test_it_is_copied_and_pickled(tiny, inputs):
    model = remixer.remix(tiny("llama"), "long_short", inputs(), in_place=True)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(again, inputs())[0], outputs(model, inputs())[0])


def test_a_model_with_the_same_config_stays_as_it_is(tiny, inputs):
    model = tiny("llama")
    other = type(model)(model.config).eval()
    expected = outputs(other, inputs())
    remixer.remix(model, "long_short", inputs(), in_place=True)
    assert_close(outputs(other, inputs()), expected)


def test_what_was_learned_goes_inside(tiny, inputs):
    model = tiny("gpt2")
    before = copy.deepcopy(model.state_dict())
    graph = remixer.remix(model, MIXERS["long_short"], inputs())
    remixer.transfer(graph, [inputs(tokens=40)], steps=4, progress=False)
    assert remixer.put_inside(model, graph) is model
    assert not all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    near(outputs(model, inputs(tokens=40)), graph(**inputs(tokens=40)))
    with pytest.raises(AlreadyRemixedError, match="there are mixers inside"):
        remixer.put_inside(model, graph)
