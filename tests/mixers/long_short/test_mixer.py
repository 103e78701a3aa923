import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, MixerConfigError, Softmax
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.4, source_dim=5)


def mixer_of(config, **changes):
    torch.manual_seed(0)
    mixer = LongShortMixer(dataclasses.replace(SPEC, **changes), config).double()
    if mixer.summary_bias is not None:
        torch.nn.init.normal_(mixer.summary_bias)
    return mixer.eval()


def operands(T, B=2):
    torch.manual_seed(T)
    heads = (4, 2, 2)
    return [torch.randn(B, count, T, 8, dtype=torch.float64) for count in heads]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "LongShort: window must be at least 1, got 0"),
        ({"segment": 0}, "LongShort: segment must be at least 1, got 0"),
        ({"rank": -1}, "LongShort: rank can't be negative, got -1"),
        ({"sinks": -2}, "LongShort: sinks can't be negative, got -2"),
        ({"memory": 0}, "LongShort: memory must be at least 1, 'dyadic' or None, got 0"),
        ({"memory": "all"}, "LongShort: memory must be at least 1, 'dyadic' or None, got 'all'"),
        ({"retrieve": -1}, "LongShort: retrieve can't be negative, got -1"),
        ({"retrieve": 2, "retrieve_block": 3}, "LongShort: retrieve_block must divide window, got 3 and 128"),
        ({"per_size": 0}, "LongShort: per_size must be at least 1, got 0"),
        ({"dual_norm": "both"}, "LongShort: dual_norm must be one of none, paper, per_head, got 'both'"),
        ({"project_from": "value"}, "LongShort: project_from must be one of key, source, got 'value'"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(options, message):
    with pytest.raises(MixerConfigError, match=message):
        LongShort(**options)


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"cross": True}, {}, "'long_short' needs as many queries as keys, this is cross-attention"),
        ({"bias": "dense"}, {}, "'long_short' can't carry a dense bias over to a window"),
        (
            {"source_dim": None},
            {"project_from": "source"},
            "its keys aren't read from one hidden state, which project_from='source' asks for",
        ),
        (
            {"value_dim": 6},
            {"dual_norm": "paper"},
            "dual_norm shares one LayerNorm between keys and values, which have sizes 8 and 6",
        ),
    ],
)
def test_what_it_cannot_replace(changes, options, reason):
    assert str(LongShortMixer.supports(dataclasses.replace(SPEC, **changes), LongShort(**options))) == reason


def test_what_it_can():
    assert LongShortMixer.supports(dataclasses.replace(SPEC, softcap=5.0, window=(9, 0)), LongShort()) is None
    assert LongShortMixer.supports(dataclasses.replace(SPEC, bias="offset"), LongShort()) is None
    without = dataclasses.replace(SPEC, source_dim=None)
    assert LongShortMixer.supports(without, LongShort(project_from="source", rank=0)) is None


def test_operands_name_the_source_only_where_it_is_read():
    assert "source" not in mixer_of(LongShort()).operands
    assert "source" in mixer_of(LongShort(project_from="source")).operands
    assert "source" not in mixer_of(LongShort(project_from="source"), window=(4, 4)).operands


def test_operands_name_the_bias_only_where_there_is_one():
    assert mixer_of(LongShort()).operands == ("query", "key", "value", "padding")
    both = mixer_of(LongShort(project_from="source"), bias="offset")
    assert both.operands == ("query", "key", "value", "padding", "bias", "source")


def test_order_and_default_ranks():
    assert [mixer_of(LongShort(), causal=causal).rank for causal in (False, True)] == [32, 1]
    assert mixer_of(LongShort(memory=None)).order == "n"
    assert mixer_of(LongShort(), causal=True).order == "n"
    assert mixer_of(LongShort(memory=None), causal=True).order == "n^2"
    assert mixer_of(LongShort(memory=None, rank=0), causal=True).order == "n"
    assert mixer_of(LongShort(memory="dyadic"), causal=True).order == "n log n"
    assert mixer_of(LongShort(memory="dyadic")).order == "n"
    assert mixer_of(LongShort(retrieve=2)).order == "n log n"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("T", [1, 19, 20])
def test_a_window_over_everything_is_softmax_attention(causal, rank, softcap, T):
    mixer = mixer_of(LongShort(window=20, rank=rank), causal=causal, softcap=softcap)
    softmax = Softmax(mixer.spec)
    padding = torch.rand(2, T) > 0.3
    padding[:, 0] = True
    for mask in (None, padding):
        for trained in (True, False):
            with torch.set_grad_enabled(trained):
                inputs = operands(T)
                assert_close(mixer(*inputs, padding=mask), softmax(*inputs, padding=mask))


@pytest.mark.parametrize("trained", [True, False])
def test_bidirectional_window_that_reaches_everything_leaves_summaries_nothing(trained):
    # The second segment sees the first one's second half only; summaries stand for the rest of its tokens alone.
    mixer = mixer_of(LongShort(window=16, rank=2, sinks=8))
    inputs = operands(24, 1)
    with torch.set_grad_enabled(trained):
        assert_close(mixer(*inputs).detach(), Softmax(mixer.spec)(*inputs))


def test_uniform_summaries_of_equal_tokens_lose_nothing():
    mixer = mixer_of(LongShort(window=4, segment=4, sinks=0, memory=None), causal=True)
    torch.nn.init.zeros_(mixer.summary_bias)
    query, key, value = operands(40, 1)
    key, value = (x[:, :, ::4].repeat_interleave(4, 2) for x in (key, value))  # equal within every segment
    assert_close(mixer(query, key, value).detach(), Softmax(mixer.spec)(query, key, value))


@pytest.mark.parametrize("trained", [True, False])
def test_left_padding_moves_causal_sinks_along(trained):
    mixer = mixer_of(LongShort(window=6, rank=0, sinks=3), causal=True)
    inputs = operands(30, 1)
    shifted = [torch.cat([torch.full_like(x[:, :, :11], 7.0), x], 2) for x in inputs]
    padding = torch.arange(41)[None] >= 11
    with torch.set_grad_enabled(trained):
        assert_close(mixer(*shifted, padding=padding)[:, :, 11:], mixer(*inputs))


def test_memory_that_holds_all_segments_is_no_limit():
    inputs = operands(57)
    options = {"window": 6, "segment": 3, "rank": 2}
    whole, limited, short = (
        mixer_of(LongShort(**options, memory=memory), causal=True)(*inputs).detach() for memory in (None, 19, 2)
    )
    assert_close(limited, whole)
    assert_close(short[:, :, :12], whole[:, :, :12])
    assert float((short - whole).abs().max()) > 1e-3


def test_nothing_is_seen_twice():
    # With values that name their position, the weights of one query add up to 1 over the positions.
    mixer = mixer_of(LongShort(window=5, segment=3, sinks=2, memory=2), causal=True, kv_heads=4, value_dim=31)
    query, key, _ = operands(31, 1)
    key = key.repeat_interleave(2, 1)
    P = mixer(query, key, torch.eye(31, dtype=torch.float64).expand(1, 4, -1, -1)).detach()
    assert_close(P.sum(-1), torch.ones(1, 4, 31, dtype=torch.float64))
    seen = (P[0, 0, 30] > 0).nonzero()[:, 0].tolist()
    assert seen == [
        0,
        1,
        *range(18, 31),
    ]  # sinks, two segments before 24, and the window, which starts where a segment does


def test_dropout_acts_in_training_only():
    mixer = mixer_of(LongShort(window=6, rank=2), dropout=0.5)
    inputs = operands(30)
    assert_close(mixer(*inputs).detach(), mixer.reference(*inputs).detach())
    first, second = mixer.train()(*inputs), mixer(*inputs)
    assert float((first - second).detach().abs().max()) > 1e-3


def test_published_form_has_no_count():
    mixer = mixer_of(LongShort(window=40, rank=3, counted=False, sinks=0))
    assert mixer.summary_bias is None
    inputs = operands(30)
    assert float((mixer(*inputs) - Softmax(mixer.spec)(*inputs)).detach().abs().max()) > 1e-3
    assert_close(mixer(*inputs).detach(), mixer.reference(*inputs).detach())


@pytest.mark.parametrize("causal", [False, True])
def test_long_sequences_go_through_in_several_runs(causal, monkeypatch):
    monkeypatch.setattr("remixer.mixers.long_short.in_cache.SCORES_IN_CACHE", 4000)
    monkeypatch.setattr("remixer.mixers.long_short.summaries.WEIGHTS_IN_CACHE", 100)
    monkeypatch.setattr("remixer.mixers.long_short.pool_in_cache.WEIGHTS_IN_CACHE", 100)
    mixer = mixer_of(LongShort(window=8, segment=4, memory=5, rank=2), causal=causal)
    inputs = operands(203, 1)
    expected = mixer(*inputs).detach()
    with torch.no_grad():
        assert_close(mixer(*inputs), expected)


@pytest.mark.parametrize("retrieve", [0, 2])
def test_summaries_of_a_whole_sequence_weigh_one_token_each_at_most(retrieve):
    config = LongShort(window=8, rank=2, sinks=0, segment=4, retrieve=retrieve, retrieve_block=4)
    mixer = LongShortMixer(dataclasses.replace(SPEC, dtype=torch.float64), config).double().eval()
    key, value = torch.zeros(1, 2, 640, 8).double(), torch.zeros(1, 2, 640, 8).double()
    value[:, :, :320] = 1.0  # half of the tokens: the mean of each summary is 1/2
    mixed = mixer(key.repeat(1, 2, 1, 1), key, value)
    read = 4 * retrieve  # of segments that are all alike, from the first half or the second
    low, high = (2 * 0.5 / (16 + 2 + read), (2 * 0.5 + read) / (16 + 2 + read))
    assert ((mixed[:, :, 400:600] > low - 1e-9) & (mixed[:, :, 400:600] < high + 1e-9)).all()


def test_maps_start_as_the_identity():
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.4, causal=True)
    operands = {"query": torch.randn(2, 4, 30, 8), "key": torch.randn(2, 2, 30, 8), "value": torch.randn(2, 2, 30, 8)}
    plain = LongShortMixer(spec, LongShort(window=4, segment=4))
    mapped = LongShortMixer(spec, LongShort(window=4, segment=4, maps=True))
    mapped.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(mapped(**operands), plain(**operands))
    assert mapped.key_map is not None
    with torch.no_grad():
        mapped.key_map.mul_(3.0)
    assert not torch.allclose(mapped(**operands), plain(**operands))
