"""A prompt at once, tokens after it in any portions, and the state that they go on from."""

import copy

import pytest
import torch
from torch import nn

import remixer
from remixer import Decoder, GenerationError
from remixer.generation import feeds
from remixer.mixers import ToeplitzMixer

EACH = [("llama", "softmax"), ("llama", "long_short"), ("written", "toeplitz")]


@pytest.fixture(scope="module")
def decoder(pair):
    """A function from names of a model and a mixer to a decoder for 320 tokens, and the rewritten model."""
    made = {}

    def get(name, mixer):
        if (name, mixer) not in made:
            small = pair(name, mixer)[1]
            made[name, mixer] = Decoder(small, 320), small
        return made[name, mixer]

    return get


def text(rows=2, tokens=260):
    ids = torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return ids, mask


def in_portions(decoder, ids, mask, sizes):
    """The logits of the last token of the first portion, and of all tokens of the others."""
    first, *others = zip(ids.split(sizes, 1), mask.split(sizes, 1), strict=True)
    logits, state = decoder.prefill(*first)
    found = [logits]
    for tokens, exist in others:
        logits, state = decoder.step(tokens, state, exist)
        found.append(logits)
    return torch.cat(found, 1), state


@pytest.mark.parametrize(("name", "mixer"), EACH)
def test_any_portions_of_a_text_give_what_the_whole_gives(decoder, name, mixer):
    streamed, small = decoder(name, mixer)
    ids, mask = text()
    with torch.no_grad():
        if name == "written":
            whole = small(ids=ids, mask=mask)
        else:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            whole = small(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for sizes in ([1] * 260, [7, 120, 1, 2, 57, 73], [259, 1]):
        logits, state = in_portions(streamed, ids, mask, sizes)
        wanted = whole[:, sizes[0] - 1 :]
        there = mask[:, sizes[0] - 1 :].bool()
        assert (logits - wanted)[there].abs().max() <= 1e-4 * whole.abs().max()
        assert int(state["tokens"]) == 260
        assert state["existing"].tolist() == [255, 260]


@pytest.mark.parametrize(("name", "mixer"), EACH)
def test_rows_can_be_chosen_and_repeated(decoder, name, mixer):
    streamed, _ = decoder(name, mixer)
    ids, mask = text(3, 40)
    index = torch.tensor([2, 0, 0, 1])
    _, state = streamed.prefill(ids, mask)
    one, _ = streamed.step(ids[index, :1], streamed.reorder(state, index))
    other, _ = streamed.step(ids[index, :1], streamed.prefill(ids[index], mask[index])[1])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "mixer"), EACH)
def test_a_state_can_be_forked_saved_and_copied(decoder, name, mixer, tmp_path):
    streamed, _ = decoder(name, mixer)
    ids, mask = text(2, 30)
    _, state = streamed.prefill(ids, mask)
    torch.save(streamed.fork(state), tmp_path / "state.pt")
    kept = [streamed.fork(state), copy.deepcopy(state), torch.load(tmp_path / "state.pt")]
    ahead = ids[:, :8]
    wanted, after = streamed.step(ahead, state)
    streamed.step(ids[:, 8:16], after)  # writes on where the copies stopped
    for each in kept:
        assert torch.equal(streamed.step(ahead, each)[0], wanted)


def test_a_state_is_used_once(decoder):
    streamed, _ = decoder("llama", "long_short")
    ids, _ = text(2, 5)
    _, state = streamed.prefill(ids)
    streamed.step(ids[:, :1], state)
    for use in (lambda: streamed.step(ids[:, :1], state), lambda: streamed.fork(state)):
        with pytest.raises(GenerationError, match="a step took it over"):
            use()


@pytest.mark.parametrize(("name", "mixer"), EACH)
def test_a_state_of_inference_mode_goes_on_outside_of_it(decoder, name, mixer):
    streamed, _ = decoder(name, mixer)
    ids, mask = text(2, 12)
    with torch.inference_mode():
        _, state = streamed.prefill(ids[:, :9], mask[:, :9])
        state = streamed.reorder(streamed.step(ids[:, 9:10], state)[1], torch.tensor([0, 1]))
    after, state = streamed.step(ids[:, 10:11], state)
    torch.testing.assert_close(after, in_portions(streamed, ids, mask, [9, 1, 1, 1])[0][:, 2:3])


def memory(state):
    return sum(tensor.nbytes for tensor in state.values())


def test_the_state_of_long_short_does_not_grow(pair):
    streamed = Decoder(pair("llama", "long_short")[1], 2000)
    softmax = Decoder(pair("llama")[1], 2000)
    ids = torch.randint(3, 90, (1, 2000))
    sizes = {}
    for name, each in (("long_short", streamed), ("softmax", softmax)):
        _, state = each.prefill(ids[:, :50])
        sizes[name, 50] = memory(state)
        _, state = each.prefill(ids)
        sizes[name, 2000] = memory(state)
    assert sizes["long_short", 50] == sizes["long_short", 2000]
    assert sizes["softmax", 2000] > 35 * sizes["softmax", 50]


def test_what_a_decoder_refuses(decoder):
    streamed, _ = decoder("llama", "softmax")
    ids, mask = text(2, 20)
    _, state = streamed.prefill(ids, mask)
    for wrong, match in (
        (lambda: streamed.step(ids[:1, :1], state), "the state is of 2 rows, and there are tokens for 1"),
        (lambda: streamed.step(ids[:, :1], {"other": ids}), "its entries have other names"),
        (lambda: streamed.prefill(ids.repeat(1, 20)), "0 tokens and 400 more are more than the 320"),
        (lambda: streamed.step(ids.repeat(1, 16), state), "20 tokens and 320 more are more than the 320"),
        (lambda: streamed.prefill(ids[0]), r"expected token ids \(B, T\), got torch.int64 of shape \(20,\)"),
        (lambda: streamed.prefill(ids[:, :0]), r"of shape \(2, 0\)"),
        (lambda: streamed.prefill(ids, mask[:, 1:]), "as large as the tokens"),
    ):
        with pytest.raises(GenerationError, match=match):
            wrong()
    streamed.step(ids[:, :1], state)  # it is whole after all these


def test_models_that_no_decoder_can_be_built_of(pair, monkeypatch):
    model, small = pair("written")
    with pytest.raises(GenerationError, match=r"what remixer\.remix gave, got Written"):
        Decoder(model, 20)
    with pytest.raises(GenerationError, match="at least 2, got 1"):
        Decoder(small, 1)
    with pytest.raises(GenerationError, match="no position for token 400: index out of range"):
        Decoder(small, 401)
    monkeypatch.delitem(feeds.KNOWN, "mask")
    with pytest.raises(GenerationError, match="this one was captured with ids, mask"):
        Decoder(small, 20)


class Maskless(nn.Module):
    """One attention of ids and nothing else."""

    def __init__(self, causal=True):
        super().__init__()
        self.embedding, self.mix, self.causal = nn.Embedding(20, 16), nn.Linear(16, 48), causal

    def forward(self, ids):
        query, key, value = self.mix(self.embedding(ids)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(2)


def test_a_model_without_a_mask_takes_no_padding():
    streamed = Decoder(remixer.remix(Maskless().eval(), "softmax", torch.randint(0, 20, (2, 9))), 20)
    ids = torch.randint(0, 20, (1, 4))
    assert streamed.prefill(ids)[0].shape == (1, 1, 16)
    with pytest.raises(GenerationError, match="captured without a mask: give remix an attention_mask"):
        streamed.prefill(ids, torch.tensor([[0, 1, 1, 1]]))


def test_why_a_model_cannot_go_token_by_token_is_said():
    small = remixer.remix(Maskless(causal=False).eval(), "softmax", torch.randint(0, 20, (2, 9)))
    with pytest.raises(GenerationError, match=r"cannot stream the attention at .*sees tokens to come"):
        remixer.generate(small, torch.randint(0, 20, (1, 4)), 3)


def test_weights_that_something_was_computed_from_have_to_stay(pair):
    small = copy.deepcopy(pair("written", "toeplitz")[1])
    streamed = Decoder(small, 20)
    with torch.no_grad():
        next(small.parameters()).mul_(2.0)
    with pytest.raises(GenerationError, match="build another"):
        streamed.prefill(torch.ones(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("mixer", ["softmax", pytest.param("long_short", marks=pytest.mark.slow), "toeplitz"])
def test_bfloat16(pair, mixer):
    ids, mask = text(2, 60)
    inputs = {"ids": ids[:, :20], "mask": mask[:, :20]}
    config = pair("written", mixer)[1].report.sites[0].config
    small = remixer.remix(copy.deepcopy(pair("written")[0]).bfloat16(), config, inputs)
    with torch.no_grad():
        whole = small(ids=ids, mask=mask)
    logits, _ = in_portions(Decoder(small, 60), ids, mask, [20, 30, 10])
    there = mask[:, 19:].bool()
    assert logits.dtype == torch.bfloat16
    assert (logits - whole[:, 19:])[there].abs().max() <= 0.02 * whole.abs().max()


def test_a_model_that_trains_is_run_in_eval(pair):
    small = copy.deepcopy(pair("written", "long_short")[1]).train()
    ids = torch.randint(3, 90, (1, 30))
    logits, _ = Decoder(small, 40).prefill(ids)
    assert small.training
    torch.testing.assert_close(logits, Decoder(pair("written", "long_short")[1], 40).prefill(ids)[0])


def test_states_hold_what_coefficients_reach(pair):
    """Two mixers that are alike, of which one reaches further: the text goes on beyond both."""
    ids, mask = text(2, 2200)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    inputs = {name: each[:, :40] for name, each in given.items()}
    small = remixer.remix(pair("llama")[0], remixer.Toeplitz(decay=0.7, learn_decay=True), inputs, strict=True)
    mixers = [module for module in small.modules() if isinstance(module, ToeplitzMixer)]
    with torch.no_grad():
        for mixer, raw in zip(mixers, (-3.0, 1.2), strict=True):
            mixer.decay.raw.fill_(raw)
        whole = small(**given).logits
    decoder = Decoder(small, 3000)
    assert [mixer.remembers(3000) for mixer in mixers] == [1024, 2048]
    logits, state = in_portions(decoder, ids, mask, [900, 1, 139, 1158, 1, 1])
    assert sorted({each.shape[2] for name, each in state.items() if name.endswith(".values")}) == [1024, 2048]
    there = mask[:, 899:].bool()
    assert (logits - whole[:, 899:])[there].abs().max() <= 1e-4 * whole.abs().max()
