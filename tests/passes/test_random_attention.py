"""Graphs drawn at random that are attention, or nearly: what is accepted is exact, what is refused has a reason."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import remixer
from remixer.testing import assert_close

WIDTH = 16
UNSEEN = [(1, 1), (3, 7), (2, 22)]
LAYOUTS = ("matmul", "bmm", "baddbmm", "einsum", "five", "fused")
GROUPINGS = ("expand", "interleave", "broadcast", "tiled")
SCALES = ("none", "after", "divided", "before", "split", "alpha")
SIGHTS = ("tril", "triu", "compared", "window", "causal window", "padding", "tail")
BIASES = ("none", "table", "slopes", "dense", "large")
FILLS = ("masked_fill", "where", "where not", "added", "added first")
EDITS = (
    "softmax over queries", "a factor", "a factor of the query", "weights read", "scores read", "a term of the query",
    "weights scaled", "weights gated", "scores written", "softmax twice", "scores dropped", "heads turned",
    "relu", "query and key exchanged", "key and value exchanged", "key viewed", "key written", "query written",
    "filled with zero", "shifted", "largest subtracted", "mean of heads", "values from the left", "scores exchanged",
)  # fmt: skip
FUSED = ("query and key exchanged", "key and value exchanged", "key viewed", "key written", "query written")


@dataclass(frozen=True)
class Drawn:
    """One graph: what it is, how it is spelled, and what was changed."""

    layout: str
    kv_heads: int
    groups: int
    size: int
    value_size: int
    grouping: str
    scale: str
    sights: tuple[str, ...]
    fill: str
    hidden: float
    bias: str
    cast: bool
    softcap: float | None
    dropout: float
    edits: tuple[str, ...]

    @property
    def heads(self):
        return self.kv_heads * self.groups


@st.composite
def graphs(draw, edited):
    layout = draw(st.sampled_from(LAYOUTS))
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    size = draw(st.sampled_from([4, 8]))
    possible = FUSED if layout == "fused" else EDITS
    return Drawn(
        layout,
        kv_heads,
        draw(st.sampled_from([1, 2, 4])),
        size,
        size if edited else draw(st.sampled_from([size, 6])),
        draw(st.sampled_from(GROUPINGS if kv_heads == 1 else [g for g in GROUPINGS if g != "broadcast"])),
        draw(st.sampled_from(SCALES)),
        tuple(draw(st.lists(st.sampled_from(SIGHTS), unique=True, max_size=2))),
        draw(st.sampled_from(FILLS)),
        draw(st.sampled_from([-torch.inf, -1e9, torch.finfo(torch.float32).min, -1e4])),
        draw(st.sampled_from(BIASES)),
        draw(st.booleans()),
        draw(st.sampled_from([None, 5.0])),
        draw(st.sampled_from([0.0, 0.2])),
        tuple(draw(st.lists(st.sampled_from(possible), unique=True, min_size=1, max_size=2))) if edited else (),
    )


class Random(nn.Module):
    """The attention that was drawn, behind projections of its own."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn, d = drawn, drawn
        self.query = nn.Linear(WIDTH, d.heads * d.size)
        self.key, self.value = nn.Linear(WIDTH, d.kv_heads * d.size), nn.Linear(WIDTH, d.kv_heads * d.value_size)
        self.other = nn.Linear(WIDTH, d.size)
        self.table, self.factors = nn.Parameter(torch.randn(d.heads, 9)), nn.Parameter(torch.rand(d.heads, 1, 1) + 1)
        self.dropout = nn.Dropout(d.dropout)

    def forward(self, x, keep):
        d, edits = self.drawn, self.drawn.edits
        query, key, value = (
            layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, heads in ((self.query, d.heads), (self.key, d.kv_heads), (self.value, d.kv_heads))
        )
        if "query and key exchanged" in edits and d.groups == 1:
            query, key = key, query
        if "key and value exchanged" in edits:
            key, value = value, key
        if d.scale == "before":
            query = query * d.size**-0.5
        if d.scale == "split":
            query, key = query * d.size**-0.25, key * d.size**-0.25
        extra = []
        if d.layout == "fused":
            seen, bias = self.seen(x, keep), self.bias(x)
            mask = seen
            if bias is not None:
                mask = bias if seen is None else bias.masked_fill(~seen, -torch.inf)
            if "key viewed" in edits:
                key = key.reshape(*key.shape[:2], -1, key.shape[2]).transpose(-1, -2)
            result = F.scaled_dot_product_attention(
                query, self.repeated(key), self.repeated(value), attn_mask=mask,
                dropout_p=d.dropout * self.training, scale=None if d.scale == "none" else 0.3,
            )  # fmt: skip
        else:
            scores = self.masked(self.scores(query, key, x), x, keep, query, extra)
            weights = self.weights(scores, extra)
            result = self.mixed(weights, value)
        if "query written" in edits:
            extra.append(query.mul_(2.0))
        if "key written" in edits:
            extra.append(key[..., 0].add_(1.0))
        return result, extra

    def repeated(self, x):
        B, G, S, D = x.shape
        groups = self.drawn.groups
        if groups == 1 or (self.drawn.grouping == "broadcast" and G == 1 and self.drawn.layout == "matmul"):
            return x
        if self.drawn.grouping == "interleave":
            return x.repeat_interleave(groups, dim=1)
        if self.drawn.grouping == "tiled":
            return x.repeat(1, groups, 1, 1)
        return x[:, :, None, :, :].expand(B, G, groups, S, D).reshape(B, G * groups, S, D)

    def scores(self, query, key, x):
        """(B, H, T, S), or (B * H, T, S) by bmm, or (B, G, groups, T, S)."""
        d = self.drawn
        if d.layout == "five":
            query = query.unflatten(1, (d.kv_heads, d.groups))
            return query @ key[:, :, None].transpose(-1, -2)
        key = self.repeated(key)
        if "key viewed" in d.edits:
            turned = key.reshape(*key.shape[:2], key.shape[3], key.shape[2])
        else:
            turned = key.transpose(-1, -2)
        if d.layout in ("bmm", "baddbmm"):
            query, turned = query.flatten(0, 1), turned.flatten(0, 1)
        if d.layout == "baddbmm":
            alpha = d.size**-0.5 if d.scale == "alpha" else 1.0
            added = torch.zeros(query.shape[0], x.shape[1], x.shape[1])
            return torch.baddbmm(added, query, turned, beta=0.5, alpha=alpha)
        if d.layout == "einsum":
            return torch.einsum("bhtd,bhds->bhts", query, turned)
        return torch.bmm(query, turned) if d.layout == "bmm" else query @ turned

    def masked(self, scores, x, keep, query, extra):
        d, edits = self.drawn, self.drawn.edits
        seen, bias = self.laid_out(self.seen(x, keep), self.bias(x), x)
        if "scores written" in edits:
            scores.diagonal(dim1=-2, dim2=-1).add_(1.0)
        if "scores read" in edits:
            extra.append(scores.mean())
        if scores.dim() == 4:
            scores = self.with_terms(scores, x, query)
        if "relu" in edits:
            scores = torch.relu(scores)
        if "scores exchanged" in edits:
            scores = scores.transpose(-1, -2)
        if d.fill == "added first" and bias is not None:
            scores = scores + bias
        scores = self.scaled(scores)
        if d.softcap is not None:
            scores = d.softcap * torch.tanh(scores / d.softcap)
        if "shifted" in edits:
            scores = scores + 1.5
        if bias is not None and d.fill != "added first":
            scores = scores + bias
        return self.filled(scores, seen)

    def scaled(self, scores):
        size = self.drawn.size
        if self.drawn.scale == "after":
            return scores * size**-0.5
        return scores / size**0.5 if self.drawn.scale == "divided" else scores

    def laid_out(self, seen, bias, x):
        d, shape = self.drawn, (x.shape[0], self.drawn.heads, x.shape[1], x.shape[1])
        if d.layout in ("bmm", "baddbmm"):
            return (None if m is None else m.expand(shape).reshape(-1, *shape[2:]) for m in (seen, bias))
        if d.layout == "five":
            seen = None if seen is None else seen.expand(-1, -1, x.shape[1], -1)[:, :, None]
            bias = None if bias is None else bias.unflatten(1, (d.kv_heads, d.groups))
        return seen, bias

    def with_terms(self, scores, x, query):
        edits = self.drawn.edits
        if "a factor" in edits:
            scores = scores * self.factors
        if "a factor of the query" in edits:
            scores = scores * query[..., :1].sigmoid()
        if "a term of the query" in edits:
            scores = scores + query @ self.other(x)[:, None].transpose(-1, -2)
        return scores

    def filled(self, scores, seen):
        hidden = 0.0 if "filled with zero" in self.drawn.edits else self.drawn.hidden
        if seen is None:
            return scores
        if self.drawn.fill == "masked_fill":
            return scores.masked_fill(~seen, hidden)
        if self.drawn.fill == "where":
            return torch.where(seen, scores, hidden)
        if self.drawn.fill == "where not":
            return torch.where(~seen, torch.full((), hidden), scores)
        return scores + torch.zeros(seen.shape).masked_fill(~seen, hidden)

    def weights(self, scores, extra):
        edits = self.drawn.edits
        if "largest subtracted" in edits:
            scores = scores - scores.amax(-1, keepdim=True)
        if "scores dropped" in edits:
            scores = self.dropout(scores)
        if "softmax twice" in edits:
            scores = torch.softmax(scores, -1)
        dim = -2 if "softmax over queries" in edits else -1
        weights = torch.softmax(scores, dim, dtype=torch.float32 if self.drawn.cast else None)
        weights = self.dropout(weights.to(scores.dtype))
        if "weights read" in edits:
            extra.append(weights.mean())
        if "weights scaled" in edits:
            weights = weights * 1.5
        if "weights gated" in edits:
            weights = weights * torch.sigmoid(scores)
        if "heads turned" in edits:
            weights = weights.roll(1, 1)
        if "mean of heads" in edits:
            weights = weights.mean(1, keepdim=True).expand(weights.shape)
        if "values from the left" in edits:
            weights = weights.transpose(-1, -2)
        return weights

    def mixed(self, weights, value):
        d = self.drawn
        if d.layout == "five":
            return (weights @ value[:, :, None]).flatten(1, 2)
        value = self.repeated(value)
        if d.layout in ("bmm", "baddbmm"):
            return torch.bmm(weights, value.flatten(0, 1)).view(-1, d.heads, *value.shape[2:])
        return torch.einsum("bhts,bhse->bhte", weights, value) if d.layout == "einsum" else weights @ value

    def seen(self, x, keep):
        """(B or 1, 1, T or 1, S) bool: which keys may be seen, or None."""
        T = x.shape[1]
        offset = torch.arange(T) - torch.arange(T)[:, None]
        every = torch.ones(T, T, dtype=torch.bool)
        kinds = {
            "tril": every.tril(),
            "triu": ~every.triu(1),
            "compared": torch.arange(T)[None] <= torch.arange(T)[:, None],
            "window": offset.abs() <= 3,
            "causal window": (offset <= 0) & (offset > -5),
            "padding": keep[:, None, None, :],
            "tail": offset >= -2,
        }
        found = None
        for kind in self.drawn.sights:
            seen = kinds[kind] if kinds[kind].dim() == 4 else kinds[kind][None, None]
            found = seen if found is None else found & seen
        return found

    def bias(self, x):
        """(1, H, T, S), or None."""
        kind, T = self.drawn.bias, x.shape[1]
        offset = torch.arange(T) - torch.arange(T)[:, None]
        if kind == "none":
            return None
        if kind == "slopes":
            return (offset.abs() * -self.factors)[None]
        if kind == "dense":
            return self.table[:, (torch.arange(T) * 3 + torch.arange(T)[:, None]) % 9][None]
        return self.table[:, offset.clamp(-4, 4) + 4][None] * (300.0 if kind == "large" else 1.0)


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
