"""Biases by offset: read from a mask as something that costs O(n), or kept dense with the reason."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import remixer
from remixer import LongShort, SoftmaxConfig
from remixer.mixers import Softmax
from remixer.mixers.offset_bias import LinearBias, TableBias
from remixer.passes.base import Pipeline
from remixer.passes.canonicalise import Canonicalise
from remixer.passes.classify_masks import ClassifyMasks
from remixer.passes.pipelines import replacement
from remixer.passes.prove_growth import growth
from remixer.passes.prove_sites import ProveSites
from remixer.passes.recognise_attention import RecogniseAttention
from remixer.passes.select import Selection
from remixer.passes.sites import sites_of
from remixer.rewrite.capture import capture
from remixer.testing import assert_close

LOWEST = torch.finfo(torch.float32).min


def offsets(T):
    return torch.arange(T) - torch.arange(T)[:, None]  # s - t


def hidden(seen, number=LOWEST):
    return torch.zeros(seen.shape).masked_fill(~seen, number)


def padded(keep):
    return hidden(keep[:, None, None, :])


def causal(T, keep=None):
    seen = (offsets(T) <= 0)[None, None]
    return hidden(seen if keep is None else seen & keep[:, None, None, :])


def bucket(offset, count=32, farthest=128):
    """The buckets of T5, bidirectional: exact up to a quarter of the count, then logarithmic."""
    side = count // 2
    exact, distance = side // 2, offset.abs()
    scale = (side - exact) / math.log(farthest / exact)
    far = exact + (torch.log(distance.float() / exact) * scale).long()
    return (offset > 0).long() * side + torch.where(distance < exact, distance, far.clamp(max=side - 1))


def looked_up(rows, model):
    return model.table(rows).permute(2, 0, 1)[None]


def slopes(heads):
    """ALiBi's slopes for any number of heads (Press et al., 2022)."""
    power = 2 ** math.floor(math.log2(heads))
    base = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    more = [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    return torch.tensor(base + more)[:, None, None]


def counted(keep):
    return (keep.long().cumsum(1) - 1) * keep


# mask, rows of the table or None, what the spec must say
FORMS = {
    "clamped": (lambda T, keep, m: looked_up(offsets(T).clamp(-9, 9) + 9, m), 19, {}),
    "buckets": (lambda T, keep, m: looked_up(bucket(offsets(T)), m) + padded(keep), 32, {"padding": True}),
    "coarse buckets": (lambda T, keep, m: looked_up(bucket(offsets(T), 8), m) + padded(keep), 8, {"padding": True}),
    "far buckets": (lambda T, keep, m: looked_up(bucket(offsets(T), 32, 700), m), 32, {}),
    "causal": (
        lambda T, keep, m: looked_up((-offsets(T)).clamp(0, 20), m) + causal(T, keep),
        21,
        {"causal": True, "padding": True},
    ),
    "times a number": (lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=7), m) * 0.3 + padded(keep), 8, {}),
    "negative": (lambda T, keep, m: padded(keep) - looked_up(offsets(T).abs().clamp(max=7), m), 8, {}),
    "in a window": (
        lambda T, keep, m: looked_up(offsets(T).clamp(-12, 12) + 12, m) + hidden(offsets(T).abs() <= 5),
        25,
        {"window": (5, 5)},
    ),
    "a table that ends": (lambda T, keep, m: looked_up(offsets(T) + 99, m), 199, {}),
    "slopes": (lambda T, keep, m: slopes(4) * offsets(T) + causal(T), None, {"causal": True}),
    "slopes of 6 heads": (lambda T, keep, m: slopes(6) * offsets(T) + causal(T), None, {"causal": True}),
    "slopes by key": (
        lambda T, keep, m: slopes(4) * torch.arange(T) + causal(T, keep),
        None,
        {"causal": True, "padding": True, "skips_padding": False},
    ),
    "slopes by key, from the end": (
        lambda T, keep, m: slopes(4) * (torch.arange(T) - (T - 1)) + causal(T, keep),
        None,
        {"causal": True, "padding": True, "skips_padding": False},
    ),
    "slopes by existing key": (
        lambda T, keep, m: slopes(6) * counted(keep)[:, None, None] + causal(T, keep),
        None,
        {"causal": True, "padding": True, "skips_padding": True},
    ),
    "slopes on both sides": (
        lambda T, keep, m: -slopes(4) * offsets(T).abs() + padded(keep),
        None,
        {"padding": True, "skips_padding": False},
    ),
    "slopes that differ by side": (
        lambda T, keep, m: slopes(4) * (offsets(T).clamp(max=0) - 0.5 * offsets(T).clamp(min=0)),
        None,
        {},
    ),
}


def model_of(one_attention, name):
    mask, rows, expected = FORMS[name]
    heads = 6 if "6" in name or "existing" in name else 4
    model = one_attention(mask, heads=heads, width=8 * heads)
    if rows is not None:
        model.table = nn.Embedding(rows, heads)
        nn.init.zeros_(model.table.weight)  # at zero it looks like no bias: it is randomised for the trials
    return model, expected


def inputs_of(model, B, T, kind="right"):
    keep = torch.ones(B, T, dtype=torch.bool)
    place = torch.arange(T)
    keep[-1] = {"right": place < max(1, T - T // 3), "left": place >= T // 3, "holes": place % 4 != 1}[kind]
    return {"x": torch.randn(B, T, model.query.in_features), "keep": keep}


@pytest.mark.parametrize("name", FORMS)
def test_read_by_offset_with_nothing_dense_left(name, one_attention, recognised):
    model, expected = model_of(one_attention, name)
    result, (site,) = recognised(model, inputs_of(model, 2, 9))
    assert [str(miss) for miss in result.misses] == []
    assert site.record.note == ""
    assert site.spec.bias == "offset"
    for key, value in expected.items():
        assert getattr(site.spec, key) == value, (key, site.spec)
    module = result.program.graph_module.get_submodule(str(site.operand("bias").target))
    assert isinstance(module, TableBias if model.__dict__["_modules"].get("table") else LinearBias)
    if isinstance(module, TableBias):
        nn.init.normal_(model.table.weight)
    exact = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program).program
    window = replacement(Selection.of({"*": LongShort(window=200, rank=0)}))(result.program).program
    assert str(growth(window).order) == "n"
    for B, T, kind in ((1, 1, "right"), (2, 6, "left"), (2, 41, "holes"), (1, 90, "right")):
        inputs = inputs_of(model, B, T, kind)
        original = model(**inputs)
        assert_close(exact.graph_module(**inputs), original)
        # Padded queries before all keys may see nothing: softmax makes something of that, the window makes 0.
        alive = inputs["keep"] if site.spec.padding else torch.ones(B, T, dtype=torch.bool)
        assert_close(window.graph_module(**inputs), original, where=alive)


def test_the_table_stays_where_it_was_and_trains(one_attention, recognised):
    model, _ = model_of(one_attention, "buckets")
    nn.init.normal_(model.table.weight)
    inputs = inputs_of(model, 2, 9)
    result, _ = recognised(model, inputs)
    small = replacement(Selection.of({"*": LongShort(window=64, rank=0)}))(result.program).graph_module
    assert {"table.weight", "query.weight"} <= {name for name, _ in small.named_parameters()}
    other = inputs_of(model, 2, 33)
    for each in (model, small):
        each.zero_grad()
        (each(**other) * other["keep"][..., None]).square().sum().backward()
        model_gradient = model.table.weight.grad if each is model else model_gradient  # noqa: F821
    model.table.weight.grad = None
    small.zero_grad()
    (small(**other) * other["keep"][..., None]).square().sum().backward()
    assert_close(small.get_parameter("table.weight").grad, model_gradient)


def test_layers_share_one_sequence(one_attention, recognised):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            given = lambda T, mask, m: mask  # noqa: E731
            self.layers = nn.ModuleList(one_attention(given, heads=4, width=32) for _ in range(3))
            self.table, self.mask = nn.Embedding(32, 4), True

        def forward(self, x, keep):
            mask = looked_up(bucket(offsets(x.shape[1])), self) + padded(keep)
            for layer in self.layers:
                x = layer(x, mask)
            return x

    model = Shared()
    inputs = {"x": torch.randn(2, 9, 32), "keep": torch.arange(9)[None] < torch.tensor([[9], [6]])}
    result, sites = recognised(model, inputs)
    assert len({site.operand("bias") for site in sites}) == 1
    small = replacement(Selection.of({"layers.1": None, "*": LongShort(window=64, rank=0)}))(result.program)
    assert_close(small.graph_module(**inputs), model(**inputs))
    assert [site.name for site in sites_of(small.program)] == ["layers.0", "layers.2"]


DENSE = {
    "by position": (
        lambda T, keep, m: m.table(torch.arange(T) % 16)[None, None, :, :1].expand(1, 1, T, T) * offsets(T),
        "its bias is not read from the table table.weight, one entry for each head and offset",
    ),
    "a product of entries": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m) ** 2,
        "its bias is not read from the table table.weight, one entry for each head and offset",
    ),
    "a table plus something else": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m) - offsets(T).abs() / 64,
        "its bias is not read from the table table.weight, one entry for each head and offset",
    ),
    "two tables": (
        lambda T, keep, m: looked_up(offsets(T).abs().clamp(max=15), m) + m.query.weight[0, 0],
        "its bias is computed from several parameters, query.weight, table.weight",
    ),
    "by length": (lambda T, keep, m: -(offsets(T).abs() / T)[None, None], "its bias is not linear in the offset"),
    "squared": (lambda T, keep, m: -offsets(T).square()[None, None] / 64.0, "its bias is not linear in the offset"),
    "almost linear": (
        lambda T, keep, m: -offsets(T).abs().clamp(max=300)[None, None] * 0.015625,
        "its bias is not linear in the offset",
    ),
    "rounded": (
        lambda T, keep, m: (-0.3 * offsets(T).abs()).bfloat16().float()[None, None],
        "its bias is linear in the offset, but rounded to half precision in between",
    ),
    "periodic": (
        lambda T, keep, m: looked_up(offsets(T) % 16, m),
        "its bias may still change beyond an offset of 1024",
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_kept_dense_with_the_reason(name, one_attention, recognised):
    mask, reason = DENSE[name]
    model = one_attention(mask, heads=4, width=32)
    if "table" in reason or name == "periodic":
        model.table = nn.Embedding(16, 4)
    inputs = inputs_of(model, 2, 9)
    result, (site,) = recognised(model, inputs)
    assert site.spec.bias == "dense"
    assert site.record.note == reason
    assert site.record.error is not None
    kept = replacement(Selection.of({"*": LongShort()}))(result.program)
    assert [miss.reason for miss in kept.misses] == [
        f"'long_short' can't carry a dense bias over to a window ({reason})"
    ]
    exact = replacement(Selection.of({"*": SoftmaxConfig()}))(result.program).graph_module
    for T in (9, 40):
        other = inputs_of(model, 2, T)
        assert_close(exact(**other), model(**other))


def changed(module):
    """Sequences that a misreading might have given."""
    if isinstance(module, LinearBias):
        yield "steeper", LinearBias(module.before * 1.001, module.after)
        yield "heads exchanged", LinearBias(module.before.flip(0), module.after.flip(0))
    else:
        yield "a place off", TableBias(module.places, module.first + 1, module.factor)
        yield "mirrored", TableBias(module.places.flip(1), module.first, module.factor)
        yield "cut short", TableBias(module.places[:, 12:], module.first + 12, module.factor)
        yield "factor", TableBias(module.places, module.first, module.factor * 1.01)


@pytest.mark.parametrize("name", ["buckets", "slopes of 6 heads"])
def test_a_misread_bias_is_not_proven(name, one_attention):
    model, _ = model_of(one_attention, name)
    program = capture(model.eval(), inputs_of(model, 2, 9))
    read = Pipeline((Canonicalise(), RecogniseAttention(), ClassifyMasks()))(program).program
    (site,) = sites_of(read)
    path = str(site.operand("bias").target)
    right = read.graph_module.get_submodule(path)
    for what, wrong in changed(right):
        read.graph_module.set_submodule(path, wrong)
        result = ProveSites()(read)
        assert "differs from what it was read from" in result.misses[0].reason, what
    read.graph_module.set_submodule(path, right)
    assert ProveSites()(read).misses == ()


def test_half_precision(one_attention, recognised):
    for name in ("buckets", "slopes"):
        model, _ = model_of(one_attention, name)
        mask = model.mask
        model.mask = lambda T, keep, m, mask=mask: mask(T, keep, m).clamp(min=-1e30).to(torch.bfloat16)
        model = model.to(torch.bfloat16)
        inputs = inputs_of(model, 2, 9)
        inputs["x"] = inputs["x"].bfloat16()
        result, (site,) = recognised(model, inputs)
        assert site.spec.bias == "offset", site.record.note
        small = replacement(Selection.of({"*": LongShort(window=64, rank=0)}))(result.program).graph_module
        with torch.no_grad():
            out, original = small(**inputs), model(**inputs)
        assert out.dtype == torch.bfloat16
        assert float((out - original)[inputs["keep"]].abs().max()) < 0.05


def test_queries_and_keys_of_two_sequences_keep_their_bias_dense(recognised):
    class Cross(nn.Module):
        def forward(self, x, memory):
            query, key = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (x, memory))
            offset = torch.arange(memory.shape[1]) - torch.arange(x.shape[1])[:, None]
            return F.scaled_dot_product_attention(query, key, key, attn_mask=-offset.abs().float())

    _, (site,) = recognised(Cross(), (torch.randn(2, 5, 16), torch.randn(2, 9, 16)))
    assert site.spec.bias == "dense"
    assert site.record.note == "queries and keys of its bias are not positions of one sequence"
    assert isinstance(site.mixer, Softmax)


def t5_encoder():
    shape = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 32, "num_layers": 2}
    return transformers.T5EncoderModel(transformers.T5Config(**shape))


def mpnet():
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.MPNetModel(transformers.MPNetConfig(**shape, intermediate_size=32))


def mpt():
    shape = {"vocab_size": 100, "d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 256}
    return transformers.MptModel(transformers.MptConfig(**shape, use_cache=False))


def bloom():
    shape = {"vocab_size": 100, "hidden_size": 48, "n_layer": 2, "n_head": 6}
    return transformers.BloomModel(transformers.BloomConfig(**shape, use_cache=False))


@pytest.mark.parametrize("make", [t5_encoder, mpnet, mpt, bloom])
def test_models_as_they_are_published(make):
    model = make().eval()
    ids, mask = torch.randint(3, 90, (2, 12)), (torch.arange(12)[None] < torch.tensor([[12], [8]])).long()
    small = remixer.remix(model, LongShort(window=256, rank=0), {"input_ids": ids, "attention_mask": mask}, strict=True)
    assert small.report.order == "n"
    assert [site.spec.bias for site in small.report.sites] == ["offset"] * 2
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert own >= {name for name, _ in small.named_parameters()}
    for T, start, stop in ((31, 0, 20), (31, 9, 31), (200, 0, 150)):
        ids, place = torch.randint(3, 90, (2, T)), torch.arange(T)
        mask = torch.stack([torch.ones(T).bool(), (place >= start) & (place < stop)])
        given = {"input_ids": ids, "attention_mask": mask.long()}
        with torch.no_grad():
            assert_close(small(**given)[0], model(**given)[0], where=mask)
