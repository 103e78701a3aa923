"""What can't stand inside a model, and what can't be asked of one that has mixers inside."""

import copy

import pytest
import torch
from torch import nn

import remixer
from remixer import InPlaceError, LongShort, Toeplitz
from remixer.mixers.errors import NoStepError
from remixer.testing import assert_close

MIXER = LongShort(window=8, segment=4, memory=3)


@pytest.mark.parametrize(("family", "mixer", "told"), [
    ("bloom", Toeplitz(), r"at transformer\.h\.0\.self_attention isn't computed through transformers' att"),
    ("t5", MIXER, "needs bias, which transformers' attention interface doesn't hand over"),
    ("llama", LongShort(project_from="source"), "needs source, which"),
])  # fmt: skip
def test_a_model_that_is_refused_is_as_it_was(tiny, inputs, family, mixer, told):
    model = tiny(family)
    given = inputs(family)
    names, config = list(model.state_dict()), model.config
    before = copy.deepcopy(config.to_dict())
    with torch.no_grad():
        expected = model(**given)[0]
    with pytest.raises(InPlaceError, match=told):
        remixer.remix(model, mixer, given, in_place=True)
    assert (list(model.state_dict()), model.config.to_dict()) == (names, before)
    assert_close(model(**given)[0], expected)


def test_what_is_no_model_of_transformers_is_refused_at_once():
    with pytest.raises(InPlaceError, match="got TransformerEncoderLayer"):
        remixer.remix(nn.TransformerEncoderLayer(32, 4, 64), "toeplitz", torch.zeros(2, 8, 32), in_place=True)


def test_a_graph_of_another_model_is_refused(tiny, inputs):
    graph, other = remixer.remix(tiny("llama"), MIXER, inputs()), tiny("llama", attention_bias=True)
    with pytest.raises(InPlaceError, match="hands over another query than the graph has"):
        remixer.put_inside(other, graph)


def test_an_interruption_leaves_the_model_as_it_was(tiny, inputs, monkeypatch):
    model = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    graph = remixer.remix(model, MIXER, inputs())
    with torch.no_grad():
        for weight in graph.parameters():
            weight.add_(0.1)

    def interrupted(*args):
        changed = [name for name, weight in model.state_dict().items() if not weight.equal(before.get(name, weight))]
        assert changed, "the interruption is to come after the weights were taken"
        raise KeyboardInterrupt

    monkeypatch.setattr("remixer.in_place.proving.prove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remixer.put_inside(model, graph)
    assert list(model.state_dict()) == list(before)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert not hasattr(model, "remixed_in_place")


def test_longer_tables_are_for_graphs(tiny, inputs):
    with pytest.raises(InPlaceError, match="max_length is for graphs"):
        remixer.remix(tiny("gpt2"), "toeplitz", inputs(), in_place=True, max_length=900)


@pytest.fixture(scope="module")
def llama(tiny, inputs):
    return remixer.remix(tiny("llama"), MIXER, inputs(), in_place=True)


def test_several_documents_in_a_row_are_refused(llama, inputs):
    ids = inputs(rows=1, padded=0)["input_ids"]
    places = torch.cat([torch.arange(10), torch.arange(14)])[None]
    with pytest.raises(InPlaceError, match=r"asks for the mask .*packed_sequence.*Several documents in one row"):
        llama(input_ids=ids, position_ids=places, use_cache=False)
    llama(input_ids=ids, position_ids=torch.arange(24)[None], use_cache=False)


def test_masks_of_ones_own_are_refused(llama, inputs):
    given = inputs()
    given["attention_mask"] = torch.ones(2, 1, 24, 24, dtype=torch.bool).tril()
    with pytest.raises(InPlaceError, match=r"got a mask of shape \(2, 1, 24, 24\)"):
        llama(**given)


def test_a_static_cache_is_refused(llama, inputs):
    with pytest.raises(InPlaceError, match="a cache with room for"):
        llama.generate(**inputs(), max_new_tokens=4, do_sample=False, cache_implementation="static")


def test_padding_needs_a_capture_with_a_mask(tiny, inputs):
    given = inputs()
    model = remixer.remix(tiny("llama"), MIXER, {"input_ids": given["input_ids"]}, in_place=True)
    model(input_ids=given["input_ids"], attention_mask=torch.ones(2, 24))
    with pytest.raises(InPlaceError, match="captured without a mask"):
        model(**given)


def test_a_cache_lacks_what_retrieval_needs(tiny, inputs):
    mixer = LongShort(window=8, segment=4, memory=3, retrieve=1)
    model = remixer.remix(tiny("llama"), mixer, inputs(), in_place=True)
    model.generate(**inputs(), max_new_tokens=3, do_sample=False, use_cache=False)
    with pytest.raises(NoStepError, match="needs the queries of the tokens before too"):
        model.generate(**inputs(), max_new_tokens=3, do_sample=False)
