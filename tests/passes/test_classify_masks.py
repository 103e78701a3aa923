"""Every mask that is met in practice: what it is read as, and that the rewrite computes the same."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from remixer import SoftmaxConfig
from remixer.passes.mask_fit import fit
from remixer.passes.mask_trials import Trial
from remixer.passes.pipelines import replacement
from remixer.passes.select import Selection
from remixer.passes.trial_sizes import padding_pattern
from remixer.testing import assert_close

LOWEST = torch.finfo(torch.float32).min


def offsets(T):
    return torch.arange(T) - torch.arange(T)[:, None]  # s - t


def causal(T, keep, model):
    return torch.ones(T, T, dtype=torch.bool).tril()


def additive(hidden, number):
    return torch.zeros(hidden.shape).masked_fill(hidden, number)


BOOLEAN = {
    "everything": (lambda T, keep, m: torch.ones(T, T, dtype=torch.bool), {}),
    "causal": (causal, {"causal": True}),
    "causal by comparison": (lambda T, keep, m: (offsets(T) <= 0)[None, None], {"causal": True}),
    "window": (lambda T, keep, m: (offsets(T) <= 0) & (offsets(T) > -4), {"causal": True, "window": (3, 0)}),
    "wide window": (
        lambda T, keep, m: (offsets(T) <= 0) & (offsets(T) > -100),
        {"causal": True, "window": (99, 0)},
    ),
    "window as a float": (
        lambda T, keep, m: offsets(T).float().abs() <= 90.0,
        {"causal": False, "window": (90, 90)},
    ),
    "window as a tensor": (
        lambda T, keep, m: offsets(T).abs() <= torch.full((), 70),
        {"causal": False, "window": (70, 70)},
    ),
    "window behind a division": (
        lambda T, keep, m: offsets(T).abs() // 4 < 20,
        {"causal": False, "window": (79, 79)},
    ),
    "both sides": (lambda T, keep, m: offsets(T).abs() <= 4, {"causal": False, "window": (4, 4)}),
    "uneven": (
        lambda T, keep, m: (offsets(T) >= -5) & (offsets(T) <= 2),
        {"causal": False, "window": (5, 2)},
    ),
    "padding": (lambda T, keep, m: keep[:, None, None, :], {"padding": True, "causal": False}),
    "padding dropped": (lambda T, keep, m: (~keep)[:, None, None, :].logical_not(), {"padding": True}),
    "causal and padding": (
        lambda T, keep, m: causal(T, keep, m) & keep[:, None, None, :],
        {"padding": True, "causal": True},
    ),
    "padding of queries too": (
        lambda T, keep, m: keep[:, None, None, :] & keep[:, None, :, None],
        {"padding": True, "pads_queries": True, "dead_rows": "zero"},
    ),
    "causal and padding of queries too": (
        lambda T, keep, m: causal(T, keep, m) & keep[:, None, None, :] & keep[:, None, :, None],
        {"padding": True, "pads_queries": True, "causal": True},
    ),
    "window and padding": (
        lambda T, keep, m: (offsets(T).abs() <= 3) & keep[:, None, None, :],
        {"padding": True, "window": (3, 3)},
    ),
}
NUMBERS = {"inf": -torch.inf, "finfo": LOWEST, "1e9": -1e9, "1e4": -1e4}


def check(result, sites, model, inputs, **expected):
    assert [str(miss) for miss in result.misses] == []
    (site,) = sites
    assert site.record.note == ""
    for name, value in {"bias": "none", **expected}.items():
        assert getattr(site.spec, name) == value, (name, site.spec)
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))


@pytest.mark.parametrize("name", BOOLEAN)
def test_boolean_masks(name, one_attention, recognised, padded):
    mask, expected = BOOLEAN[name]
    model, inputs = one_attention(mask), padded()
    result, sites = recognised(model)
    check(result, sites, model, inputs, **expected)
    assert ("padding" in sites[0].node.kwargs) == expected.get("padding", False)
    for length in (1, 5, 130):
        longer = {"x": torch.randn(3, length, 16), "keep": torch.ones(3, length, dtype=torch.bool)}
        longer["keep"][0, : length // 2] = False
        assert_close(result.graph_module(**longer), model(**longer))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("spelling", ["masked_fill", "where", "times"])
def test_additive_masks(number, spelling, one_attention, recognised, padded):
    value = NUMBERS[number]
    if spelling == "times" and value == -torch.inf:
        pytest.skip("0 * inf is no mask")

    def mask(T, keep, model):
        seen = causal(T, keep, model) & keep[:, None, None, :]
        if spelling == "masked_fill":
            return additive(~seen, value)
        if spelling == "where":
            return torch.where(seen, 0.0, value)
        return (1.0 - seen.float()) * value

    model, inputs = one_attention(mask), padded()
    result, sites = recognised(model)
    check(result, sites, model, inputs, padding=True, causal=True)


@pytest.mark.parametrize(("dtype", "number", "dead"), [
    (torch.float32, -torch.inf, "zero"),
    (torch.float32, LOWEST, "mean"),
    (torch.float32, -1e9, "mean"),
    (torch.float32, -1e4, "all"),
])  # fmt: skip
def test_what_a_row_gives_that_sees_nothing(dtype, number, dead, one_attention, recognised):
    model = one_attention(lambda T, keep, m: additive(~(causal(T, keep, m) & keep[:, None, None]), number))
    result, (site,) = recognised(model)
    assert site.spec.dead_rows == dead
    left = {"x": torch.randn(2, 7, 16), "keep": torch.ones(2, 7, dtype=torch.bool)}
    left["keep"][0, :3] = False
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**left), model(**left))


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dead_rows", ["once", "past"])
def test_two_masks_of_the_lowest_number_in_a_sum(dead_rows, window, one_attention, recognised, padded):
    def mask(T, keep, model):
        exist, past = keep[:, None, None], causal(T, keep, model)
        band = past if window is None else past & (offsets(T) >= -window)
        return additive(~(exist if dead_rows == "once" else exist & past), LOWEST) + additive(~band, LOWEST)

    model = one_attention(mask)
    result, sites = recognised(model)
    check(result, sites, model, padded(), causal=True, padding=True, window=(window, 0), dead_rows=dead_rows)
    left = {"x": torch.randn(3, 7, 16), "keep": torch.ones(3, 7, dtype=torch.bool)}
    left["keep"][0, :3] = False
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**left), model(**left))


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_padding_of_other_dtypes_and_polarities(dtype, one_attention, recognised, padded):
    kept = one_attention(lambda T, keep, m: (1.0 - keep[:, None, None, :].to(torch.float32)) * LOWEST)
    inputs = padded(dtype)
    result, sites = recognised(kept, inputs)
    check(result, sites, kept, inputs, padding=True)
    dropped = one_attention(lambda T, keep, m: additive(keep[:, None, None, :].bool(), -torch.inf))
    inputs["keep"] = 1 - inputs["keep"]
    result, sites = recognised(dropped, inputs)
    check(result, sites, dropped, inputs, padding=True)
    assert sites[0].operand("padding").target is torch.ops.aten.logical_not.default


def test_a_mask_shared_by_layers_is_understood_once(one_attention, recognised, padded):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            shared = lambda T, mask, m: mask  # noqa: E731
            self.first, self.second, self.mask = one_attention(shared), one_attention(shared), causal

        def forward(self, x, keep):
            mask = additive(~(causal(x.shape[1], None, None) & keep[:, None, None, :]), LOWEST)
            return self.second(self.first(x, mask), mask)

    _result, sites = recognised(Two())
    assert [site.name for site in sites] == ["first", "second"]
    assert all(site.spec.causal and site.spec.padding for site in sites)
    assert sites[0].operand("padding") is sites[1].operand("padding")


def test_sequence_first_inputs_are_not_taken_for_a_batch(recognised):
    """(T, B, C): the length is the first dimension of the input; windows must be tried along it."""

    class First(nn.Module):
        def forward(self, x):
            heads = x.transpose(0, 1).unflatten(-1, (2, 8)).transpose(1, 2)
            near = offsets(x.shape[0]).abs() <= 12
            return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=near)

    _, (site,) = recognised(First(), (torch.randn(9, 3, 16),))
    assert site.spec.window == (12, 12)


REFUSED = {
    "a mask given as it is": (lambda T, keep, m: keep, "is not known|depends on the values of input"),
    "padding of queries too, which see themselves": (
        lambda T, keep, m: keep[:, None, None, :] & keep[:, None, :, None] | torch.eye(T, dtype=torch.bool),
        "no causal, window and padding explain the mask",
    ),
    "every other key": (
        lambda T, keep, m: (offsets(T) % 2 == 0) & keep[:, None, None, :],
        "no causal, window and padding explain the mask",
    ),
    "a window too long to try": (
        lambda T, keep, m: offsets(T).abs() < 20000,
        "holds the constant 20000, too long a window to be tried",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_masks_that_are_not_understood_stay_as_they_are(name, one_attention, recognised, padded):
    mask, reason = REFUSED[name]
    model, inputs = one_attention(mask), padded()
    if name == "a mask given as it is":
        inputs["keep"] = torch.rand(2, 1, 9, 9) > 0.3
        inputs["keep"][..., 0] = True
    result, (site,) = recognised(model, inputs)
    assert site.spec.bias == "dense"
    assert not site.spec.causal
    assert site.spec.window == (None, None)
    assert not site.spec.padding
    assert re.search(reason, site.record.note), site.record.note
    assert site.record.note in [miss.reason for miss in result.misses]
    assert site.record.error is not None  # proven as it stands
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))


def test_what_padded_queries_give_follows_the_number_that_hides(one_attention, recognised, padded):
    def mask(T, keep, model):
        both = keep[:, None, None, :] & keep[:, None, :, None]
        return additive(~both, LOWEST)

    model, inputs = one_attention(mask), padded()
    result, sites = recognised(model)
    check(result, sites, model, inputs, padding=True, pads_queries=True, dead_rows="mean")
    assert "padding of keys and queries" in str(sites[0].spec)


@pytest.mark.parametrize(("alignment", "diagonal"), [("start", lambda T, S: 0), ("end", lambda T, S: S - T)])
@pytest.mark.parametrize("left", [None, 70])
def test_causal_with_fewer_queries_than_keys(alignment, diagonal, left, recognised):
    class Two(nn.Module):
        def forward(self, x, memory):
            T, S = x.shape[1], memory.shape[1]
            query, key = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (x, memory))
            mask = torch.ones(T, S, dtype=torch.bool).tril(diagonal(T, S))
            if left is not None:
                mask = mask.triu(diagonal(T, S) - left)
            return F.scaled_dot_product_attention(query, key, key, attn_mask=mask)

    inputs = {"x": torch.randn(2, 5, 16), "memory": torch.randn(2, 9, 16)}
    model = Two()
    result, sites = recognised(model, inputs)
    spec = sites[0].spec
    assert (spec.cross, spec.causal, spec.window, spec.alignment) == (True, True, (left, 0), alignment)
    check(result, sites, model, inputs)
    for T, S in ((1, 7), (6, 6), (90, 100)):
        other = {"x": torch.randn(2, T, 16), "memory": torch.randn(2, S, 16)}
        assert_close(result.graph_module(**other), model(**other))


def by_segment(T, ids, model):
    return (ids[:, :, None] == ids[:, None, :])[:, None]


def by_restart(T, ids, model):
    document = (ids.diff(dim=1, prepend=ids[:, :1] - 1) != 1).cumsum(1)
    return (document[:, :, None] == document[:, None, :])[:, None]


PACKED = {
    "segments": by_segment,
    "segments, 0 is padding": lambda T, ids, m: by_segment(T, ids, m) & (ids != 0)[:, None, None, :],
    "segments, as a number": lambda T, ids, m: additive(~by_segment(T, ids, m), -1e9),
    "causal segments": lambda T, ids, m: by_segment(T, ids, m) & causal(T, ids, m),
    "positions that start again": by_restart,
    "positions that start again, causal": lambda T, ids, m: by_restart(T, ids, m) & causal(T, ids, m),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_documents_are_kept_apart(name, one_attention, recognised):
    """0 and 1, as padding has them, would look like padding of keys and queries."""
    model = one_attention(PACKED[name])
    ids = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 3]] * 2)
    if "positions" in name:
        ids = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1]] * 2)
    inputs = {"x": torch.randn(2, 9, 16), "keep": ids}
    result, (site,) = recognised(model, inputs)
    assert site.spec.bias == "dense"
    assert site.record.note == (
        "its mask depends on the values of input 'keep', which tell apart the documents that are packed into one row"
    )
    small = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))


def test_positions_that_are_counted_out_are_no_documents(one_attention, recognised, padded):
    """As decoders without a mask do it: they look for documents in positions that are always 0, 1, 2, ..."""

    def mask(T, keep, model):
        return by_restart(T, torch.arange(T)[None].expand(keep.shape[0], -1), model) & causal(T, keep, model)

    model, inputs = one_attention(mask), padded()
    result, sites = recognised(model)
    check(result, sites, model, inputs, causal=True, padding=False)


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_numbers_that_say_what_exists_are_no_documents(dtype, one_attention, recognised, padded):
    for mask in (
        lambda T, keep, m: (keep != 0)[:, None, None, :] & (keep != 0)[:, None, :, None],
        lambda T, keep, m: (keep == 1)[:, None, None, :] & (keep == 1)[:, None, :, None],
        lambda T, keep, m: (1.0 - keep[:, None, None, :].float()) * LOWEST,
    ):
        _, (site,) = recognised(one_attention(mask), padded(dtype))
        assert site.record.note == ""
        assert site.spec.padding


def test_a_mask_that_each_layer_makes_anew_is_read_once(one_attention, recognised, padded, monkeypatch):
    from remixer.passes import classify_masks

    read = []
    understand = classify_masks.understand
    monkeypatch.setattr(classify_masks, "understand", lambda *given: read.append(1) or understand(*given))

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            both = lambda T, keep, m: causal(T, keep, m) & keep[:, None, None, :]  # noqa: E731
            other = lambda T, keep, m: (offsets(T).abs() < 5) & keep[:, None, None, :]  # noqa: E731
            self.layers = nn.ModuleList(one_attention(mask) for mask in (both, other, both, other))
            self.mask = True

        def forward(self, x, keep):
            for layer in self.layers:
                x = layer(x, keep)
            return x

    model, inputs = Several(), padded()
    result, sites = recognised(model)
    assert [site.spec.causal for site in sites] == [True, False, True, False]
    assert [site.spec.window for site in sites] == [(None, 0), (4, 4)] * 2
    assert len(read) == 2
    assert_close(result.graph_module(**inputs), model(**inputs))


def test_a_mask_that_depends_on_the_data(one_attention, recognised, padded):
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = one_attention(lambda T, mask, m: mask)

        def forward(self, x, keep):
            chosen = (x @ x.transpose(1, 2))[:, None] > 0
            return self.inner(x, chosen | torch.eye(x.shape[1], dtype=torch.bool))

    _, (site,) = recognised(Sparse(), padded())
    assert site.spec.bias == "dense"
    assert "depends on the values of input 'x'" in site.record.note


@settings(max_examples=6, deadline=None)
@given(left=st.none() | st.integers(0, 60), right=st.none() | st.integers(0, 60), pad=st.booleans())
def test_any_band_with_padding_is_fitted_exactly(left, right, pad):
    trials = []
    for index, (batch, T) in enumerate([(2, 41), (3, 29), (3, 29), (2, 23), (1, 80)]):
        band = torch.ones(T, T, dtype=torch.bool)
        if left is not None:
            band &= offsets(T) >= -left
        if right is not None:
            band &= offsets(T) <= right
        existing = padding_pattern(index, batch, T)
        seen = band & existing[:, None, None, :] if pad else band[None, None]
        trials.append(Trial(seen, existing if pad else None, T, T))
    form = fit(trials, aligned=True)
    assert (form.left, form.right, form.padding, form.biased) == (left, right, pad, False)
