"""Training on a CPU by parts: values and gradients beside those of all tiles at once, where both take the operands."""

import pytest
import torch
import torch.nn.functional as F
from trained import operands, random_mixer

from remixer.mixers import AttentionSpec, LongShort
from remixer.mixers.long_short import attention_by_parts as attention_by_parts_module
from remixer.mixers.long_short import dispatch
from remixer.mixers.long_short.attention_by_parts import Columns, attention_by_parts
from remixer.mixers.long_short.in_training import trainable_by_parts
from remixer.mixers.long_short.overlapping import overlapping
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.4)


@pytest.fixture(autouse=True)
def without_compiled_code(monkeypatch):
    monkeypatch.setattr(dispatch, "trainable_in_c", lambda *operands: False)


def mixer_of(config, **changes):
    return random_mixer(SPEC, config, **changes)


def both(mixer, inputs, padding, monkeypatch):
    """Output and gradients by parts, and by all tiles at once."""
    found = []
    torch.manual_seed(1)
    above = torch.randn(inputs[0].shape, dtype=inputs[0].dtype)
    for by_parts in (True, False):
        asked = []
        monkeypatch.setattr(
            dispatch,
            "trainable_by_parts",
            lambda *given, on=by_parts, asked=asked: asked.append(trainable_by_parts(*given)) or on,
        )
        mixed = mixer(*inputs, padding=padding)
        assert asked == [True]
        found.append((mixed, *torch.autograd.grad(mixed, [*inputs, *mixer.parameters()], above)))
    return found


CONFIGS = [
    LongShort(window=8, rank=2, sinks=0),
    LongShort(window=8, segment=4, rank=2, sinks=3),
    LongShort(window=64, segment=4, rank=1, memory=3, sinks=1),
    LongShort(window=64, segment=12, rank=2, memory="dyadic", per_size=3),
    LongShort(window=12, segment=4, memory=None, counted=False),
    LongShort(window=8, rank=0, sinks=0),
    LongShort(window=8, segment=4, rank=2, maps=True, dual_norm="per_head"),
    LongShort(window=65, segment=3, memory=40, sinks=2),
    LongShort(window=64, segment=4, memory=30, sinks=2, retrieve=3),
    LongShort(window=64, segment=4, memory="dyadic", retrieve=2, retrieve_block=4, rank=2),
    LongShort(window=72, segment=4, rank=0, retrieve=3, retrieve_block=8),
    LongShort(window=66, segment=3, memory=20, retrieve=2, retrieve_block=6, counted=False),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [65, 203])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_the_same_as_all_tiles_at_once(config, T, causal, monkeypatch):
    mixer = mixer_of(config, causal=causal)
    inputs = operands(T + config.window, mixer.spec)
    padding = torch.ones(2, T + config.window, dtype=torch.bool)
    padding[0, :70], padding[1, 20:25], padding[1, -9:] = False, False, False
    for mask in (None, padding):
        for ours, theirs in zip(*both(mixer, inputs, mask, monkeypatch), strict=True):
            assert_close(ours, theirs)


def test_the_same_in_float32_for_one_sample_and_heads_of_their_own(monkeypatch):
    mixer = mixer_of(LongShort(window=64, segment=8), causal=True, kv_heads=4).float()
    inputs = operands(333, mixer.spec, 1, torch.float32)
    for ours, theirs in zip(*both(mixer, inputs, None, monkeypatch), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("config", CONFIGS[:5], ids=range(5))
def test_the_mixers_parameters_alone(config, monkeypatch):
    mixer = mixer_of(config, causal=True)
    inputs = [each.detach() for each in operands(261, mixer.spec)]
    found = []
    for by_parts in (True, False):
        monkeypatch.setattr(dispatch, "trainable_by_parts", lambda *_, on=by_parts: on)
        found.append(torch.autograd.grad(mixer(*inputs).square().sum(), [*mixer.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


def test_no_gradients_of_a_window_that_nobody_trains(monkeypatch):
    mixer = mixer_of(LongShort(window=64, segment=4, memory=40), causal=True)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    columns = []

    class Watched:
        def __getattr__(self, name):
            return getattr(torch.ops.aten, name)

        def _scaled_dot_product_flash_attention_for_cpu_backward(self, above, query, key, *rest, **options):
            columns.append(key.shape[2])
            return backward(above, query, key, *rest, **options)

    monkeypatch.setattr(attention_by_parts_module, "aten", Watched())
    inputs = operands(300, mixer.spec)
    mixer(*inputs).sum().backward()
    everything = columns.copy()
    columns.clear()
    mixer(*(each.detach() for each in inputs)).sum().backward()
    window = 64 + 32
    assert window in everything
    assert window not in columns
    assert len(columns) == 3  # four tiles, four more, and those that no longer look at what lies before the sequence


@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_nothing_give_0_and_gradients_of_0(causal):
    mixer = mixer_of(LongShort(window=8, rank=0, sinks=0), causal=causal)
    inputs = operands(50, mixer.spec)
    padding = torch.zeros(2, 50, dtype=torch.bool)
    padding[0, 30:] = True
    mixed = mixer(*inputs, padding=padding)
    gradients = torch.autograd.grad(mixed.sum(), inputs)
    assert float(mixed[1].detach().abs().max()) == 0.0
    for gradient in gradients:
        assert float(gradient[1].abs().max()) == 0.0
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"softcap": 5.0}, {}),
        ({"dropout": 0.1}, {}),
        ({"bias": "offset"}, {"bias": torch.zeros(4, 2 * 90 - 1)}),
        ({"value_dim": 6}, {}),
    ],
)
def test_what_the_fused_kernel_does_not_take(changes, given, monkeypatch):
    mixer = mixer_of(LongShort(window=8), **changes).float()
    query, key, value = operands(90, mixer.spec, dtype=torch.float32)
    value = value[..., : mixer.spec.value_dim]
    asked = []
    monkeypatch.setattr(
        dispatch, "trainable_by_parts", lambda *operands: asked.append(trainable_by_parts(*operands)) or asked[-1]
    )
    mixer(query, key, value, **given).sum().backward()
    assert asked == [False]


def parts_of(groups, runs, sizes):
    torch.manual_seed(2)
    options = {"dtype": torch.float64, "requires_grad": True}
    query = torch.randn(2, 3, 4, groups, 6, 8, **options)
    parts = [
        Columns(
            torch.randn(2, 3, several * 4, size, 8, **options),
            torch.randn(2, 3, several * 4, size, 8, **options),
            torch.randn(2, 3, several * 4, groups, 6 // several, size, dtype=torch.float64),
        )
        for several, size in zip(runs, sizes, strict=True)
    ]
    return query, parts


def by_hand(query, parts, added, scale):
    """All columns side by side, one softmax."""
    B, G, tiles, groups, length, _ = query.shape
    scores, values = [], []
    for number, part in enumerate(parts):
        several = part.key.shape[2] // tiles
        rows = query.unflatten(4, (several, -1)).permute(0, 1, 2, 4, 3, 5, 6).flatten(2, 3)
        score = rows @ part.key[:, :, :, None].transpose(-1, -2) * scale + part.bias
        if added is not None and number == len(parts) - 1:
            score = score + added.view(G, 1, groups, 1, 1)
        score = score.unflatten(2, (tiles, several)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5)
        scores.append(score)
        value = part.value.unflatten(2, (tiles, several))[:, :, :, None, :, None]
        values.append(value.expand(B, G, tiles, groups, several, length // several, *value.shape[-2:]).flatten(4, 5))
    return (torch.softmax(torch.cat(scores, -1), -1)[..., None, :] @ torch.cat(values, -2)).squeeze(-2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("runs", "sizes"), [((1,), (5,)), ((1, 1), (7, 1)), ((1, 3, 2), (4, 5, 3))])
@pytest.mark.parametrize("shifted", [False, True])
def test_parts_beside_one_softmax_written_out(groups, runs, sizes, shifted):
    query, parts = parts_of(groups, runs, sizes)
    added = torch.randn(3 * groups, dtype=torch.float64, requires_grad=True) if shifted else None
    learned = [query, *(each for part in parts for each in part[:2]), *([] if added is None else [added])]
    above = torch.randn(query.shape, dtype=torch.float64)
    found = []
    for function in (attention_by_parts, by_hand):
        mixed = function(query, parts, added, 0.3)
        found.append((mixed, *torch.autograd.grad(mixed, learned, above)))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


def test_a_part_left_out_is_noticed():
    query, parts = parts_of(1, (1, 1), (7, 2))
    with pytest.raises(AssertionError):
        assert_close(attention_by_parts(query, parts[:1], None, 0.3), by_hand(query, parts, None, 0.3))


@pytest.mark.parametrize(
    ("start", "span", "step", "count"),
    [(-5, 9, 4, 6), (0, 4, 4, 5), (3, 2, 5, 3), (-40, 6, 3, 4), (-2, 30, 7, 2), (19, 6, 2, 3)],
)
def test_overlapping_runs_and_their_gradients(start, span, step, count):
    tokens = torch.randn(2, 3, 21, 4, dtype=torch.float64, requires_grad=True)
    wide = F.pad(tokens, (0, 0, 60, 60))
    expected = torch.stack([wide[:, :, 60 + start + i * step :][:, :, :span] for i in range(count)], 2)
    runs = overlapping(tokens, start, span, step, count)
    assert_close(runs, expected)
    above = torch.randn_like(expected)
    assert_close(torch.autograd.grad(runs, tokens, above)[0], torch.autograd.grad(expected, tokens, above)[0])
    with torch.no_grad():
        assert_close(overlapping(tokens, start, span, step, count), expected)
