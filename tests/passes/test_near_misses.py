"""What looks like attention and is another thing: kept, with a reason."""

import re

import pytest
import torch
import torch.nn.functional as F
from near import BETWEEN, Near, Pair, causal, kept_exact, on_scores, on_weights, scored, softmax, written
from torch import nn

import remixer

LOWEST = torch.finfo(torch.float32).min


def on_all_pairs(q, k, v, x, s):
    scores = scored(q, k)
    return softmax(scores.flatten(-2), -1).view(scores.shape) @ v


def slots(q, k, v, x, s):
    logits = x @ s.other.weight[:3].mT  # (B, T, slots)
    return softmax(logits, -1) @ (softmax(logits, 1).mT @ x)


def talking_before(q, k, v, x, s):
    return softmax(torch.einsum("bhts,gh->bgts", scored(q, k), s.other.weight[:2, :2]), -1) @ v


def talking_after(q, k, v, x, s):
    return torch.einsum("bhts,gh->bgts", softmax(scored(q, k), -1), s.other.weight[:2, :2]) @ v


def normalised_by_hand(q, k, v, x, s):
    weights = scored(q, k).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def sparsemax(scores):
    ordered = scores.sort(-1, descending=True).values
    sums = ordered.cumsum(-1) - 1.0
    count = (ordered * torch.arange(1, scores.shape[-1] + 1) > sums).sum(-1, keepdim=True)
    return torch.relu(scores - sums.gather(-1, count - 1) / count)


def both_ways(q, k, v, x, s):
    scores = scored(q, k)
    return softmax(scores, -1) @ v, softmax(scores.mT, -1) @ k


def two_products(q, k, v, x, s):
    weights = softmax(scored(q, k), -1)
    return weights @ v, weights @ k


def differential(q, k, v, x, s):
    other = s.split(s.other, x)
    return (softmax(scored(q, k), -1) - 0.5 * softmax(scored(other, k), -1)) @ v


def efficient_attention(q, k, v, x, s):
    return softmax(q, -1) @ (softmax(k, 2).mT @ v)


def zero_filled(scores, x, s):
    return scores.masked_fill(causal(x) < 0, 0.0)


def self_hidden(scores, x):
    scores.diagonal(dim1=-2, dim2=-1).fill_(-3.0)


def weights_changed(q, k, v, x, s):
    weights = softmax(scored(q, k), -1)
    weights[..., 0] *= 0.5
    return weights @ v


# Another function: it is not recognised, and these words are among the reasons.
MISSES = {
    "softmax over queries": (lambda q, k, v, x, s: softmax(scored(q, k), -2) @ v, "softmax runs over dim -2"),
    "softmax over heads": (lambda q, k, v, x, s: softmax(scored(q, k), 1) @ v, "softmax runs over dim 1"),
    "softmax over all pairs": (on_all_pairs, "runs over all pairs of tokens at once"),
    "softmax over all pairs of all heads": (
        lambda q, k, v, x, s: softmax((a := scored(q, k)).flatten(1), -1).view(a.shape) @ v,
        "runs over all pairs of tokens at once",
    ),
    "softmax over all pairs, read as they are": (
        lambda q, k, v, x, s: softmax((scored(q, k) + causal(x)).flatten(2), -1),
        "softmax over all pairs of tokens at once is in no product with values",
    ),
    "gate": (on_scores(lambda a, x, s: a * torch.sigmoid(s.split(s.other, x)[..., :1])), "multiplied by a tensor"),
    "times a mask": (on_scores(lambda a, x, s: a * (causal(x) == 0).float()), "hides nothing by itself"),
    "times a mask, too little added": (
        on_scores(lambda a, x, s: a * (b := (causal(x) == 0).float()) - 3.0 * (1 - b)),
        "differs from",
    ),
    "times a mask, times a weight": (
        on_scores(lambda a, x, s: a * (causal(x) == 0).float() * s.other.weight[:1, :1]),
        "expected what hides the zeros",
    ),
    "temperature of a head": (on_scores(lambda a, x, s: a * s.other.weight[:2, :1, None]), "multiplied by a tensor"),
    "temperature of a token": (on_scores(lambda a, x, s: a / x.exp()[:, None, :, :1]), "multiplied by a tensor"),
    "temperature by length": (on_scores(lambda a, x, s: a / x.shape[1] ** 0.5), "multiplied by a"),
    "masked weights": (on_weights(lambda w, x, s: w * (causal(x) == 0).float()), "aten.mul follows it"),
    "weights scaled": (on_weights(lambda w, x, s: w * 2.0), "aten.mul follows it"),
    "weights added to": (on_weights(lambda w, x, s: w + torch.eye(x.shape[1])), "aten.add follows it"),
    "weights normalised again": (on_weights(lambda w, x, s: w / w.sum(-2, keepdim=True)), "aten.sum follows it"),
    "weights to a power": (on_weights(lambda w, x, s: w**2), "aten.pow follows it"),
    "softmax twice": (on_scores(lambda a, x, s: softmax(a, -1)), "found aten.softmax"),
    "softmax of weights": (on_weights(lambda w, x, s: softmax(w, -1)), "found aten.softmax"),
    "log of the weights": (on_weights(lambda w, x, s: w.log()), "aten.log follows it"),
    "relu on scores": (on_scores(lambda a, x, s: torch.relu(a)), "found aten.relu"),
    "clamped scores": (on_scores(lambda a, x, s: a.clamp(-0.1, 0.1)), "found aten.clamp"),
    "scores squared": (on_scores(lambda a, x, s: a * a), "multiplied by a tensor"),
    "scores of a row turned": (on_scores(lambda a, x, s: a.roll(1, -1)), "found aten.roll"),
    "scores exchanged": (on_scores(lambda a, x, s: a.mT), "found aten.mT"),
    "top scores": (on_scores(lambda a, x, s: a.masked_fill(a < a.topk(1).values, -torch.inf)), "also read by"),
    "softcap after the mask": (on_scores(lambda a, x, s: 5 * torch.tanh((a + causal(x, -9.0)) / 5)), "after the mask"),
    "dropout of scores": (on_scores(lambda a, x, s: F.dropout(a, 0.1, s.training)), "dropout"),
    "zero where hidden": (on_scores(zero_filled), "differs from what it was read from"),
    "talking before": (talking_before, "einsum"),
    "talking after": (talking_after, "einsum"),
    "heads mixed by a layer": (
        on_weights(lambda w, x, s: F.linear(w.permute(0, 2, 3, 1), s.other.weight[:2, :2]).permute(0, 3, 1, 2)),
        "aten.permute follows it",
    ),
    "weights averaged over heads": (on_weights(lambda w, x, s: w.mean(1, keepdim=True)), "aten.mean follows it"),
    "weights are an output": (
        lambda q, k, v, x, s: ((w := softmax(scored(q, k), -1)) @ v, w.mean(1)),
        "is also read by",
    ),
    "scores are an output": (lambda q, k, v, x, s: (softmax(a := scored(q, k), -1) @ v, a), "is also read by"),
    "two products": (two_products, "is also read by"),
    "both ways": (both_ways, "is also read by"),
    "values from the left": (lambda q, k, v, x, s: v.mT @ softmax(scored(q, k), -1), "no product with values"),
    "difference of two": (differential, "aten.sub follows it"),
    "weights times values": (lambda q, k, v, x, s: softmax(scored(q, k), -1) * v[..., :1], "no product with values"),
    "heads attend to heads": (
        lambda q, k, v, x, s: (softmax(q.transpose(1, 2) @ k.transpose(1, 2).mT, -1) @ v.transpose(1, 2)).flatten(2),
        "the number of heads",
    ),
    "features attend to features": (lambda q, k, v, x, s: softmax(q.mT @ k, -1) @ v.mT, "is not fixed"),
    "diagonal written": (written(self_hidden), "is also read by aten.diagonal"),
    "first key written": (written(lambda a, x: a[..., 0].mul_(2.0)), "is also read by aten.select"),
    "weights written": (weights_changed, "is also read by aten.select"),
    "slots of experts": (slots, "is also read by aten.softmax"),
    "efficient attention": (efficient_attention, "found aten.transpose"),
    "exp by hand": (normalised_by_hand, BETWEEN + "exp"),
    "relu attention": (
        lambda q, k, v, x, s: torch.relu(scored(q, k)) / x.shape[1] @ v,
        "expected a softmax between two products",
    ),
    "sigmoid attention": (
        lambda q, k, v, x, s: torch.sigmoid(scored(q, k)) @ v,
        "expected a softmax between two products",
    ),
    "sparsemax": (lambda q, k, v, x, s: sparsemax(scored(q, k)) @ v, BETWEEN + "sort"),
}


@pytest.mark.parametrize("name", ["gate", "top scores", "weights are an output", "zero where hidden"])
def test_explain_tells_the_same_and_the_line(name):
    mix, words = MISSES[name]
    reported = remixer.explain(Pair(Near(mix)).eval(), {"x": torch.randn(2, 9, 16)})
    (site,) = [site for site in reported.sites if site.name == "near"]
    assert (site.status, site.spec) == ("missed", None)
    assert words in site.reason
    assert re.search(r"near(_misses)?\.py:\d", site.reason)
    assert words in " ".join(str(reported).replace("│", " ").split())


@pytest.mark.parametrize("name", MISSES)
def test_another_function_is_kept_and_the_reason_told(name):
    mix, words = MISSES[name]
    sites = kept_exact(Near(mix))
    assert [site for site in sites if site.spec is not None] == []
    assert any(words in site.reason for site in sites), [site.reason for site in sites]


class Weights(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention, self.options = nn.MultiheadAttention(16, 2, batch_first=True), options

    def forward(self, x):
        return self.attention(x, x, x, **self.options)


@pytest.mark.parametrize("options", [{}, {"average_attn_weights": False}])
def test_weights_that_a_caller_asks_for_are_kept(options):
    (site,) = kept_exact(Weights(**options))
    assert site.spec is None
    assert "is also read by" in site.reason
