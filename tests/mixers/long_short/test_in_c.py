"""The compiled Long-Short attention against the reference, and where it is used."""

import dataclasses

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, c_library
from remixer.mixers.convolution_in_c import CONVOLUTION
from remixer.mixers.long_short import compiled_attention, dispatch, in_c
from remixer.mixers.long_short.compiled_attention import ATTENTION, GRADIENTS, Group, attend
from remixer.mixers.long_short.in_c import usable_in_c
from remixer.mixers.long_short.pool_in_c import POOLING
from remixer.mixers.long_short.sight import Tokens
from remixer.mixers.toeplitz_gradients_in_c import PRODUCT_IN_TRAINING
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=6, kv_heads=2, head_dim=8, value_dim=6, scale=0.4)
CODE = [ATTENTION, GRADIENTS, POOLING, CONVOLUTION, PRODUCT_IN_TRAINING]
pytestmark = pytest.mark.skipif(not ATTENTION.there(torch.float32), reason="no C compiler")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How often the code was asked for."""
    made = []

    def mix(*operands, **options):
        made.append(operands)
        return in_c.mix_in_c(*operands, **options)

    monkeypatch.setattr(dispatch, "mix_in_c", mix)
    return made


def mixer_of(config, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    mixer = LongShortMixer(dataclasses.replace(SPEC, **changes), config).to(dtype)
    if mixer.summary_bias is not None:
        torch.nn.init.normal_(mixer.summary_bias)
    return mixer.eval()


def operands(mixer, T, B=2, dtype=torch.float64):
    torch.manual_seed(T)
    spec = mixer.spec
    sizes = ((spec.heads, spec.head_dim), (spec.kv_heads, spec.head_dim), (spec.kv_heads, spec.value_dim))
    return [torch.randn(B, T, heads, size, dtype=dtype).transpose(1, 2) for heads, size in sizes]


def paddings(T, B=2):
    """None, on the left, on the right, at both ends, in the middle, and a sample without any token."""
    place = torch.arange(T)
    masks = [place >= T // 3, place < T - T // 3, (place > T // 4) & (place < T - 3), (place < 3) | (place > T // 2)]
    return [None, *(torch.stack([mask, ~mask]) for mask in masks), torch.stack([place < T, place < 0])]


CONFIGS = [
    (False, LongShort(window=8, rank=3, sinks=2)),
    (False, LongShort(window=7, rank=40, sinks=0)),
    (False, LongShort(window=6, rank=0, sinks=5)),
    (False, LongShort(window=8, rank=2, counted=False)),
    (True, LongShort(window=8, segment=4, sinks=2)),
    (True, LongShort(window=9, segment=4, rank=3, sinks=0, memory=5)),
    (True, LongShort(window=5, segment=3, memory="dyadic", per_size=2)),
    (True, LongShort(window=8, segment=1, memory=None)),
    (True, LongShort(window=1, segment=2, rank=0, sinks=1)),
]


@pytest.mark.parametrize(("causal", "config"), CONFIGS)
@pytest.mark.parametrize("T", [2, 9, 33, 130])
def test_equals_the_reference_in_float64(causal, config, T, calls):
    mixer = mixer_of(config, causal=causal)
    inputs = operands(mixer, T)
    for padding in paddings(T):
        expected = mixer.reference(*inputs, padding=padding).detach()
        with torch.no_grad():
            assert_close(mixer(*inputs, padding=padding), expected)
    assert calls or config.window + mixer.align > T


@pytest.mark.parametrize(("causal", "config"), CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_reference_in_lower_precision(causal, config, dtype, calls):
    mixer, exact = mixer_of(config, dtype, causal=causal), mixer_of(config, causal=causal)
    exact.load_state_dict(mixer.state_dict())
    inputs = operands(mixer, 75, dtype=dtype)
    for padding in paddings(75)[:3]:
        expected = exact.reference(*(each.double() for each in inputs), padding=padding).detach()
        with torch.no_grad():
            mixed = mixer(*inputs, padding=padding)
        assert mixed.dtype == dtype
        assert_close(mixed, expected.to(dtype))
    assert len(calls) == 3


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (8, 2), (40, 1), (71, 1)])
@pytest.mark.parametrize(("size", "value_size"), [(1, 1), (5, 12), (16, 13), (31, 64), (80, 3)])
def test_heads_and_sizes(heads, kv_heads, size, value_size, calls):
    config = LongShort(window=8, segment=4, sinks=2)
    mixer = mixer_of(config, heads=heads, kv_heads=kv_heads, head_dim=size, value_dim=value_size, causal=True)
    inputs = operands(mixer, 35, B=1)
    with torch.no_grad():
        assert_close(mixer(*inputs), mixer.reference(*inputs))
    assert calls


@pytest.mark.parametrize(("left", "right"), [(3, 3), (20, None), (None, 2), (0, 0)])
def test_windows_of_the_attention_that_is_replaced(left, right, calls):
    mixer = mixer_of(LongShort(window=8), window=(left, right), causal=right == 0)
    inputs = operands(mixer, 50)
    with torch.no_grad():
        assert_close(mixer(*inputs), mixer.reference(*inputs))
    assert calls


def test_more_columns_than_are_scored_at_once():
    mixer = mixer_of(LongShort(window=400, segment=2, memory=None), causal=True, heads=2, kv_heads=1)
    inputs = operands(mixer, 701, B=1)
    with torch.no_grad():
        mixed = mixer(*inputs)
    rows = torch.tensor([0, 399, 400, 403, 700])
    expected = mixer.reference(*inputs)  # 401 tokens and 150 summaries
    assert_close(mixed[:, :, rows], expected[:, :, rows].detach())


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_scores_of_any_size(size):
    mixer = mixer_of(LongShort(window=8, segment=4, rank=2, sinks=3), causal=True)
    query, key, value = operands(mixer, 75)
    inputs = (query * size, key * size, value)
    with torch.no_grad():
        assert_close(mixer(*inputs), mixer.reference(*inputs))


def test_what_is_no_number_stays_none():
    mixer = mixer_of(LongShort(window=8, rank=0, sinks=0), torch.float32)
    for bad in (float("nan"), float("inf")):
        query, key, value = operands(mixer, 40, dtype=torch.float32)
        query[0, 0, 7, 1] = bad
        with torch.no_grad():
            mixed = mixer(query, key, value)
        assert mixed[0, 0, 7].isnan().all()
        mixed[0, 0, 7] = 0.0
        assert mixed.isfinite().all()


def test_more_threads_than_queries():
    mixer, threads = mixer_of(LongShort(window=2), causal=True), torch.get_num_threads()
    inputs = operands(mixer, 3, B=1)
    expected = mixer.reference(*inputs)
    try:
        torch.set_num_threads(7)
        with torch.no_grad():
            assert_close(mixer(*inputs), expected)
    finally:
        torch.set_num_threads(threads)


def test_strides_of_all_kinds():
    query, key, value = (torch.randn(1, 2, 24, 6, dtype=torch.float64) for _ in range(3))
    place = torch.arange(12, dtype=torch.int32)[None]
    ends = torch.zeros_like(place), place + 1
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, ::2, :3], key[:, :, ::2, 3:], value[:, :, 1::2, ::2], is_causal=True, scale=1.0
    )
    out = torch.zeros(1, 12, 3, 2, dtype=torch.float64).permute(0, 3, 1, 2)
    whole = out.contiguous()
    attend(query[:, :, ::2, :3], [Group(key[:, :, ::2, 3:], value[:, :, 1::2, ::2], *ends)], 1.0, whole)
    assert_close(whole, expected)
    with pytest.raises(ValueError, match="next to each other"):
        attend(query[:, :, ::2, :3], [Group(key[:, :, ::2, 3:], value[:, :, 1::2, ::2], *ends)], 1.0, out)


def test_two_kinds_of_values():
    query, key = torch.randn(2, 4, 37, 5, dtype=torch.float64), torch.randn(2, 2, 37, 5, dtype=torch.float64)
    value, more = torch.randn(2, 2, 37, 9, dtype=torch.float64), torch.randn(2, 2, 37, 3, dtype=torch.float64)
    place = torch.arange(37, dtype=torch.int32)[None]
    group = Group(key, value, torch.zeros_like(place), place + 1)
    outs = torch.empty(2, 4, 37, 9, dtype=torch.float64), torch.empty(2, 4, 37, 3, dtype=torch.float64)
    attend(query, [group._replace(more=more)], 1.0, outs[0], more=outs[1])
    for out, values in zip(outs, (value, more), strict=True):
        wide = (each.repeat_interleave(2, 1) for each in (key, values))
        assert_close(out, torch.nn.functional.scaled_dot_product_attention(query, *wide, is_causal=True, scale=1.0))
    with pytest.raises(ValueError, match="a group has none"):
        attend(query, [group._replace(more=more), group], 1.0, outs[0], more=outs[1])


def test_what_it_does_not_take():
    mixer = mixer_of(LongShort(window=8, sinks=0))
    query, key, value = operands(mixer, 20)
    keys, values, spec = Tokens(key), Tokens(value), mixer.spec
    with torch.no_grad():
        assert usable_in_c(query, keys, values, spec, None, 0.0)
        assert not usable_in_c(query, keys, values, spec, torch.zeros(6, 39), 0.0)
        assert not usable_in_c(query, keys, values, spec, None, 0.1)
        assert not usable_in_c(query, keys, values, dataclasses.replace(spec, softcap=3.0), None, 0.0)
        assert not usable_in_c(query.half(), Tokens(key.half()), Tokens(value.half()), spec, None, 0.0)
        assert not usable_in_c(query.float(), keys, values, spec, None, 0.0)
    assert not usable_in_c(query.requires_grad_(), keys, values, spec, None, 0.0)


def test_wrong_code_is_found_out_and_not_used(monkeypatch):
    ATTENTION.forget()
    right = compiled_attention.attend

    def wrong(query, groups, scale, *rest):
        right(query, groups, scale * 1.001, *rest)

    monkeypatch.setattr(compiled_attention, "attend", wrong)
    with pytest.warns(UserWarning, match="is not used"):
        assert not ATTENTION.proven(torch.float32)
    ATTENTION.forget()


def test_without_the_code_mixers_give_the_same(monkeypatch, calls):
    mixer = mixer_of(LongShort(window=8, segment=4), causal=True)
    inputs = operands(mixer, 50)
    with torch.no_grad():
        expected = mixer(*inputs)
        monkeypatch.setattr(c_library, "library", lambda *source, **macros: None)
        ATTENTION.forget()
        assert_close(mixer(*inputs), expected)
    ATTENTION.forget()
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "code", [ATTENTION, GRADIENTS, POOLING, CONVOLUTION, PRODUCT_IN_TRAINING], ids=lambda c: c.what
)
def test_the_check_is_not_disturbed_by_what_is_on(code, dtype):
    code.forget()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"), FakeTensorMode():
        assert code.proven(dtype)
    code.forget()
    with torch.inference_mode():
        assert code.proven(dtype)


def test_it_is_not_asked_where_a_dispatch_mode_wants_to_see_every_operator(calls):
    mixer = mixer_of(LongShort(window=8, sinks=0), torch.float32)
    inputs = operands(mixer, 40, dtype=torch.float32)
    with torch.no_grad():
        with FlopCounterMode(display=False):
            mixed = mixer(*inputs)
        assert not calls
        assert_close(mixed, mixer(*inputs))
    assert len(calls) == 1
