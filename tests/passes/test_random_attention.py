"""Graphs drawn at random that are attention, or nearly: what is accepted is exact, what is refused has a reason."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_attention import WIDTH, Random
from random_graphs import graphs

import remixer
from remixer.testing import assert_close

UNSEEN = [(1, 1), (3, 7), (2, 22)]


def inputs(batch, length):
    keep = torch.ones(batch, length, dtype=torch.bool)
    keep[0, length // 2 + 1 :] = False
    return {"x": torch.randn(batch, length, WIDTH), "keep": keep}


def rounded_away(model, given):
    """(B or 1, 1, T or 1, 1) bool: queries that see nothing, whose scores lose three digits beside -10,000."""
    seen = model.seen(**given)
    if seen is None or model.drawn.hidden != -1e4:
        return torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    return ~seen.any(-1, keepdim=True)


def attempt(drawn):
    """The sites of a graph, after whatever was accepted was compared with the original."""
    torch.manual_seed(0)
    model = Random(drawn).eval()
    try:
        small = remixer.remix(model, "softmax", inputs(2, 9))
    except remixer.NoAttentionError as error:
        told = str(error)  # all were refused, of which this names the first with its reason
    else:
        told = ""
    if told:
        assert "candidates the first" in told
        return []
    assert small.report.sites
    assert all(site.reason for site in small.report.sites if site.spec is None)
    for batch, length in UNSEEN:
        given = inputs(batch, length)
        with torch.no_grad():
            (actual, extra), (expected, more) = small(**given), model(**given)
        undefined = expected.isnan() | rounded_away(model, given)  # NaN: a query that sees nothing but -inf
        assert_close((actual.masked_fill(undefined, 0), extra), (expected.masked_fill(undefined, 0), more))
    return [site for site in small.report.sites if site.spec is not None]


def says_what_was_drawn(drawn, site):
    spec, causal = site.spec, {"tril", "triu", "compared", "causal window"} & set(drawn.sights)
    assert (spec.heads, spec.head_dim, spec.value_dim) == (drawn.heads, drawn.size, drawn.value_size)
    assert spec.kv_heads in (drawn.kv_heads, drawn.heads)
    assert spec.dropout == pytest.approx(drawn.dropout)
    assert spec.softcap == (None if drawn.layout == "fused" else drawn.softcap)
    if site.reason:  # the mask was not understood, and stays as it is
        assert spec.bias == "dense"
        return
    assert (spec.bias != "none") == (drawn.bias != "none")
    assert spec.causal == bool(causal)
    assert spec.padding == ("padding" in drawn.sights)


few = settings(derandomize=True, deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=800)


def unedited(drawn):
    for site in attempt(drawn):
        says_what_was_drawn(drawn, site)


@few
@given(graphs(edited=False))
def test_attention_in_a_random_spelling(drawn):
    unedited(drawn)


@few
@given(graphs(edited=True))
def test_attention_with_random_edits(drawn):
    attempt(drawn)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@many
@given(graphs(edited=False))
def test_attention_in_many_spellings(drawn):
    unedited(drawn)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@many
@given(graphs(edited=True))
def test_attention_with_many_edits(drawn):
    attempt(drawn)
