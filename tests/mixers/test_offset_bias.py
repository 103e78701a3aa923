"""Biases by offset: their two forms, and what the mixers that take them make of them."""

import dataclasses
import math

import pytest
import torch

from remixer.mixers import AttentionSpec, LongShort, LongShortMixer, Softmax, SoftmaxConfig, available, get
from remixer.mixers.offset_bias import LinearBias, TableBias, bias_at, dense_bias
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4, source_dim=5, padding=True, bias="offset")
CONFIGS = [
    SoftmaxConfig(),
    LongShort(window=4, rank=0, sinks=0),
    LongShort(window=6, rank=3, segment=3, memory=None, sinks=2),
    LongShort(window=8, segment=4, memory=2),
    LongShort(window=5, rank=2, segment=2, memory=3, counted=False),
    LongShort(window=50, rank=2),
    LongShort(window=6, segment=3, memory="dyadic", per_size=1, rank=2),
    LongShort(window=8, segment=2, retrieve=2, memory=3, sinks=1),
    LongShort(window=7, rank=2, sinks=1, project_from="source", dual_norm="none"),
]


def table_bias():
    places = torch.arange(9).clamp(max=6)[None] * 4 + torch.arange(4)[:, None]
    return TableBias(places, -5, 0.5), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)


def mixer_of(config, **changes):
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, **changes)
    mixer = (Softmax if isinstance(config, SoftmaxConfig) else LongShortMixer)(spec, config).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.eval()


def operands_for(mixer, T, B=2):
    spec = mixer.spec
    torch.manual_seed(T)
    shapes = {
        "query": (B, 4, T, 8),
        "key": (B, spec.kv_heads, T, 8),
        "value": (B, spec.kv_heads, T, 6),
        "source": (B, T, 5),
    }
    return {
        name: torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for name, shape in shapes.items()
        if name in mixer.operands
    }


def padding_of(kind, T):
    if kind == "none":
        return None
    place = torch.arange(T)
    rows = {"left": place >= T // 3, "right": place < T - T // 3, "holes": place % 3 != 1}
    return torch.stack([rows[kind], torch.ones(T, dtype=torch.bool)])


@pytest.mark.parametrize("tokens", [1, 2, 5, 30])
def test_a_table_by_offset_is_its_reference_with_gradients(tokens):
    bias, table = table_bias()
    out, expected = bias(tokens, table), bias.reference(tokens, table)
    assert out.shape == (4, 2 * tokens - 1)
    assert_close(out, expected)
    weight = torch.randn(out.shape, dtype=torch.float64)
    actual, wanted = (torch.autograd.grad((each * weight).sum(), table)[0] for each in (out, expected))
    assert_close(actual, wanted)
    assert_close(bias(tokens, table)[:, -1], table[min(tokens - 1 + 5, 6)] * 0.5)  # constant beyond the last


@pytest.mark.parametrize("tokens", [1, 2, 5, 30])
def test_slopes_are_their_reference(tokens):
    bias = LinearBias(torch.tensor([0.5, 0.1]), torch.tensor([-0.5, 0.0]))
    assert_close(bias(tokens), bias.reference(tokens))
    assert float(bias(tokens)[0, 0]) == -0.5 * (tokens - 1)
    assert bias.bfloat16()(tokens).dtype == torch.float32


@pytest.mark.parametrize("learned", [1, 2])
def test_learned_slopes_are_their_reference_with_gradients(learned):
    bias = LinearBias(torch.tensor([0.5, 0.1]), torch.tensor([-0.5, 0.0])).double()
    slopes = torch.randn(learned, 1, dtype=torch.float64, requires_grad=True)
    out, expected = bias(7, slopes), bias.reference(7, slopes)
    assert_close(out, expected)
    weight = torch.randn(out.shape, dtype=torch.float64)
    assert_close(*(torch.autograd.grad((each * weight).sum(), slopes)[0] for each in (out, expected)))
    assert bias(7, slopes.detach().bfloat16()).dtype == torch.float64
    assert bias.float()(7, slopes.detach().bfloat16()).dtype == torch.float32


def test_a_table_that_ends_takes_no_longer_sequence():
    bias = TableBias(torch.arange(5)[None], -2, longest=3)
    assert bias(3, torch.randn(5, 1)).shape == (1, 5)
    with pytest.raises(RuntimeError, match="up to 3 tokens"):
        bias(4, torch.randn(5, 1))


def test_the_dense_bias_has_the_offsets_in_their_places():
    values = torch.arange(9.0)[None]  # offsets -4..4
    dense = dense_bias(values, 5)
    assert dense.shape == (1, 1, 5, 5)
    offset = torch.arange(5) - torch.arange(5)[:, None]
    assert torch.equal(dense[0, 0], offset + 4.0)
    assert torch.equal(bias_at(values, offset, 5), dense[:, 0])
    exist = torch.tensor([[True, False, True, True, False]])
    assert dense_bias(values, 5, exist)[0, 0, 3, [0, 2, 3]].tolist() == [2.0, 3.0, 4.0]  # the hole counts nothing


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: repr(config)[:50])
@pytest.mark.parametrize("skips", [False, True], ids=["places", "existing"])
def test_mixers_are_their_reference_in_values_and_gradients(config, causal, skips):
    for T, kind, kv_heads in ((1, "none", 4), (7, "left", 2), (23, "holes", 1), (40, "right", 2), (41, "none", 4)):
        mixer = mixer_of(config, causal=causal, kv_heads=kv_heads, skips_padding=skips)
        tensors, padding = operands_for(mixer, T), padding_of(kind, T)
        table = torch.randn(4, 2 * T - 1, dtype=torch.float64, requires_grad=True)
        live = torch.ones(2, T, dtype=torch.bool) if padding is None else padding
        leaves, results = [*tensors.values(), table, *mixer.parameters()], []
        for function in (mixer, mixer.reference):
            out = function(**tensors, padding=padding, bias=table)
            weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
            total = (out * weight * live[:, None, :, None]).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            results.append((out.detach().transpose(1, 2), gradients))
        assert_close(results[0][0], results[1][0], where=live)
        assert_close(results[0][1], results[1][1])
        with torch.no_grad():
            assert_close(mixer(**tensors, padding=padding, bias=table).transpose(1, 2), results[1][0], where=live)


def test_the_comparison_can_fail():
    mixer = mixer_of(CONFIGS[3], causal=True)
    tensors = operands_for(mixer, 23)
    table = torch.randn(4, 45, dtype=torch.float64)
    out = mixer(**tensors, bias=table).detach()
    for wrong in (table.flip(1), table.roll(1, 1), table.flip(0)):
        assert float((mixer(**tensors, bias=wrong) - out).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "left", "holes"])
def test_a_window_over_everything_is_softmax_attention(causal, kind):
    mixer = mixer_of(LongShort(window=20, rank=2), causal=causal)
    tensors = operands_for(mixer, 19)
    table, padding = torch.randn(4, 37, dtype=torch.float64), padding_of(kind, 19)
    exact = Softmax(dataclasses.replace(mixer.spec, dead_rows="zero"))
    for trained in (True, False):
        with torch.set_grad_enabled(trained):
            assert_close(mixer(**tensors, bias=table, padding=padding), exact(**tensors, bias=table, padding=padding))


def test_a_wide_window_sees_the_exact_bias():
    """Segments of a bidirectional window reach everything: no summary is left, the offsets are of several tiles."""
    mixer = mixer_of(LongShort(window=16, rank=2, sinks=8))
    tensors, table = operands_for(mixer, 24), torch.randn(4, 47, dtype=torch.float64)
    for trained in (True, False):
        with torch.set_grad_enabled(trained):
            assert_close(mixer(**tensors, bias=table), Softmax(mixer.spec)(**tensors, bias=table))


def test_summaries_of_equal_tokens_lose_nothing_under_a_bias():
    mixer = mixer_of(LongShort(window=4, segment=4, sinks=0, memory=None), causal=True)
    torch.nn.init.zeros_(mixer.summary_bias)
    tensors = operands_for(mixer, 40)
    for name in ("key", "value"):
        tensors[name] = tensors[name][:, :, ::4].repeat_interleave(4, 2)
    table = torch.randn(4, 79, dtype=torch.float64)
    out, exact = mixer(**tensors, bias=table), Softmax(mixer.spec)(**tensors, bias=table)
    last = torch.arange(40) % 4 == 3
    assert_close(out[:, :, last], exact[:, :, last])


@pytest.mark.parametrize("dead_rows", ["zero", "mean", "all"])
def test_rows_that_see_nothing(dead_rows):
    mixer = mixer_of(SoftmaxConfig(), causal=True, dead_rows=dead_rows)
    tensors, table = operands_for(mixer, 9), torch.randn(4, 17, dtype=torch.float64, requires_grad=True)
    padding = torch.arange(9)[None] >= torch.tensor([[4], [9]])
    out = mixer(**tensors, padding=padding, bias=table)
    assert_close(out, mixer.reference(**tensors, padding=padding, bias=table))
    assert all(bool(each.isfinite().all()) for each in torch.autograd.grad(out.sum(), [table, tensors["query"]]))
    alone = mixer_of(LongShort(window=6, rank=0), causal=True)
    assert float(alone(**tensors, padding=padding, bias=table)[0, :, :4].detach().abs().max()) == 0.0


def test_long_sequences_of_several_samples_go_through_in_several_runs(monkeypatch):
    monkeypatch.setattr("remixer.mixers.long_short.in_cache.SCORES_IN_CACHE", 4000)
    for causal in (False, True):
        for biased in ("none", "offset"):
            config = LongShort(window=8, segment=4, memory=5, rank=2)
            mixer = mixer_of(config, causal=causal, bias=biased)
            tensors = operands_for(mixer, 203, 2)
            table = torch.randn(4, 405, dtype=torch.float64) if biased == "offset" else None
            for kind in ("none", "left", "holes"):
                padding = padding_of(kind, 203)
                live = torch.ones(2, 203, dtype=torch.bool) if padding is None else padding
                expected = mixer(**tensors, padding=padding, bias=table).detach().transpose(1, 2)
                with torch.no_grad():
                    actual = mixer(**tensors, padding=padding, bias=table).transpose(1, 2)
                assert_close(actual, expected, where=live)


@pytest.mark.parametrize("causal", [False, True])
def test_export_grows_linearly(causal):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = mixer_of(LongShort(window=8, segment=4, memory=3), causal=causal)
            self.bias, table = table_bias()
            self.table = torch.nn.Parameter(table.detach())

        def forward(self, query, key, value, padding):
            return self.mixer(query, key, value, padding=padding, bias=self.bias(query.shape[2], self.table))

    model = Both().eval()
    inputs = {**operands_for(model.mixer, 48), "padding": padding_of("left", 48)}
    auto = torch.export.Dim.AUTO
    shapes = {name: {0: auto, each.dim() - (1 if name == "padding" else 2): auto} for name, each in inputs.items()}
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    symbol = program.graph_module.graph.find_nodes(op="placeholder")[-1].meta["val"].shape[1].node.expr
    largest = []
    for tokens in (2**13, 2**15):
        sizes = []
        for node in program.graph.nodes:
            if isinstance(node.meta.get("val"), torch.Tensor):
                shape = [size.node.expr if isinstance(size, torch.SymInt) else size for size in node.meta["val"].shape]
                free = [getattr(size, "free_symbols", set()) for size in shape]
                known = [{each: tokens if each == symbol else 2 for each in some} for some in free]
                sizes.append(math.prod(int(s.subs(k)) if k else int(s) for s, k in zip(shape, known, strict=True)))
        largest.append(max(sizes))
    assert math.log(largest[1] / largest[0], 4) <= 1.05
    others = {**operands_for(model.mixer, 61), "padding": padding_of("left", 61)}
    assert_close(program.module()(**others).detach(), model(**others).detach())


def test_every_mixer_says_whether_it_reads_the_bias():
    for name in available():
        mixer = get(name).from_attention(dataclasses.replace(SPEC, value_dim=8), get(name).Config())
        assert ("bias" in mixer.operands) == ("toeplitz" not in name)  # which has no scores to add it to
