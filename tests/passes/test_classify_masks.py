"""Every mask that is met in practice: what it is read as, and that the rewrite computes the same."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_spellings import LOWEST, additive, causal, check, offsets
from torch import nn

from remixer.passes.mask_fit import fit
from remixer.passes.mask_trials import Trial
from remixer.passes.trial_sizes import padding_pattern
from remixer.testing import assert_close

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
