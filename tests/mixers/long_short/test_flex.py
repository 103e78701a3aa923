import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention

from remixer.mixers import AttentionSpec, LongShort, LongShortAttention, LongShortMixer
from remixer.mixers.long_short import dispatch, flex
from remixer.mixers.long_short.block_scores import mask_of, tables_without_padding
from remixer.mixers.long_short.column_blocks import BLOCK, blocks_of, layout_of
from remixer.mixers.long_short.sight import Sight
from remixer.mixers.long_short.whole import Whole
from remixer.testing import assert_close

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.4, source_dim=5, padding=True)
CONFIGS = [
    LongShort(window=8, segment=4, memory=3, rank=2),
    LongShort(window=7, segment=3, memory=None, sinks=2),
    LongShort(window=6, segment=2, memory="dyadic", per_size=2, rank=2, sinks=0),
    LongShort(window=5, segment=4, memory="dyadic", per_size=1, counted=False, dual_norm="per_head", sinks=1),
    LongShort(window=6, rank=3, sinks=0, counted=False, project_from="source"),
    LongShort(window=16, rank=0),
    LongShort(window=24, rank=2, counted=False),
]
# length, batch, key/value heads of 4, padding
SHAPES = [
    (1, 1, 2, "none"),
    (2, 2, 4, "left"),
    (17, 1, 1, "none"),
    (37, 3, 2, "left"),
    (36, 2, 2, "right"),
    (29, 2, 4, "whole"),
    (150, 2, 2, "left"),
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: repr(config)[:60])
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture
def eager(monkeypatch):
    """All Long-Short attention goes through FlexAttention, uncompiled; the list has the queries that went."""
    taken = []

    def mix(query, keys, values, sight, added, **options):
        taken.append(query)
        return flex.mix_by_blocks(query, keys, values, sight, added, **options)

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(dispatch, "usable", lambda query, value, offsets, dropout: offsets is None and dropout == 0.0)
    monkeypatch.setattr(dispatch, "mix_by_blocks", mix)
    return taken


def mixer_of(config, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    spec = dataclasses.replace(SPEC, dtype=dtype, **changes)
    if config.dual_norm != "none":
        spec = dataclasses.replace(spec, value_dim=8)
    mixer = LongShortMixer(spec, config)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer.to(dtype).eval()


def operands(mixer, T, B, padding):
    torch.manual_seed(T)
    spec = mixer.spec
    shapes = [(spec.heads, spec.head_dim), (spec.kv_heads, spec.head_dim), (spec.kv_heads, spec.value_dim)]
    tensors = [torch.randn(B, heads, T, size, dtype=torch.float64).to(spec.dtype) for heads, size in shapes]
    position, row = torch.arange(T)[None], torch.arange(B)[:, None]
    cut = (T // 3 + row).clamp(max=T - 1)
    masks = {"none": None, "left": position >= cut, "right": position < T - cut, "whole": (row != 0).expand(B, T)}
    source = torch.randn(B, T, 5, dtype=torch.float64).to(spec.dtype)
    return tensors, {"padding": masks[padding], "source": source if "source" in mixer.operands else None}


@each_direction
@each_config
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_it_is_the_tiled_form_and_the_reference(config, causal, softcap, eager, monkeypatch):
    for T, B, kv_heads, padding in SHAPES:
        mixer = mixer_of(config, causal=causal, kv_heads=kv_heads, softcap=softcap)
        tensors, named = operands(mixer, T, B, padding)
        with torch.no_grad():
            out = mixer(*tensors, **named)
            if T < 100:
                assert_close(out, mixer.reference(*tensors, **named))
            with monkeypatch.context() as tiled:
                tiled.setattr(dispatch, "usable", lambda *operands: False)
                assert_close(out, mixer(*tensors, **named))
    assert len(eager) >= 2  # a window over everything needs no mixing at all


@each_direction
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_is_the_reference_in_lower_precision(dtype, causal, eager):
    for config in CONFIGS[:4]:
        mixer = mixer_of(config, dtype, causal=causal)
        for T, B, _, padding in SHAPES[2:5]:
            tensors, named = operands(mixer, T, B, padding)
            with torch.no_grad():
                out = mixer(*tensors, **named)
                assert out.dtype == dtype
                assert_close(out, mixer.reference(*tensors, **named))


@each_direction
@pytest.mark.parametrize("window", [(3, 2), (40, 40)], ids=str)
def test_a_pretrained_window_shows_nothing_beyond_it(window, causal, eager):
    left, right = window
    mixer = mixer_of(LongShort(window=8), causal=causal, window=(left, 0 if causal else right))
    tensors, named = operands(mixer, 37, 2, "left")
    with torch.no_grad():
        assert_close(mixer(*tensors, **named), mixer.reference(*tensors, **named))
    assert eager


def test_global_tokens_are_seen(eager):
    config = LongShort(window=4, rank=3, sinks=0, counted=False, dual_norm="paper", project_from="source")
    layer = LongShortAttention(24, 3, config, global_tokens=2).double().eval()
    hidden, padding = torch.randn(2, 37, 24).double(), torch.arange(37)[None] >= torch.tensor([[0], [5]])
    with torch.no_grad():
        assert_close(layer(hidden, padding), layer.reference(hidden, padding))
    assert eager


def by_all_scores(query, key, value, *, score_mod, block_mask, scale, enable_gqa):
    """FlexAttention in its math form, which can be differentiated on a CPU too."""
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = scale * query @ key.transpose(2, 3)
    index = torch.meshgrid(*(torch.arange(size) for size in scores.shape), indexing="ij")
    seen = block_mask.mask_mod(*index)
    scores = scores if score_mod is None else score_mod(scores, *index)
    seen = seen & (scores > -torch.inf)
    scores = scores.masked_fill(~seen, -1e300)
    return (torch.softmax(scores, -1) * seen) @ value


@each_direction
@each_config
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_are_those_of_the_reference(config, causal, softcap, eager, monkeypatch):
    monkeypatch.setattr(flex, "_flex_attention", lambda: by_all_scores)
    for T, B, kv_heads, padding in SHAPES[1:6]:
        mixer = mixer_of(config, causal=causal, kv_heads=kv_heads, softcap=softcap)
        tensors, named = operands(mixer, T, B, padding)
        leaves = [*(tensor.requires_grad_() for tensor in tensors), *mixer.parameters()]
        found = []
        for function in (mixer, mixer.reference):
            out = function(*tensors, **named)
            loss = (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum() / T
            found.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
        assert_close(*found)
    assert eager


def test_the_comparison_can_fail(eager, monkeypatch):
    mixer = mixer_of(CONFIGS[0], causal=True)
    tensors, named = operands(mixer, 37, 2, "left")

    def shifted(whole, positions):
        return lambda b, h, q, column: mask_of(whole, positions)(b, h, q, column + 1)

    monkeypatch.setattr(flex, "mask_of", shifted)
    with torch.no_grad(), pytest.raises(AssertionError, match="largest error"):
        assert_close(mixer(*tensors, **named), mixer.reference(*tensors, **named))


def whole_of(config, causal, T):
    mixer = mixer_of(config, causal=causal)
    exist = torch.ones(1, T, dtype=torch.bool)
    return Whole.of(Sight.of(mixer.spec, config, exist, mixer.sinks, mixer.rank, mixer.align))


@each_direction
@each_config
@pytest.mark.parametrize("T", [1, 127, 300, 513, 640])
def test_the_blocks_hold_all_that_is_seen_and_none_is_empty(config, causal, T):
    whole = whole_of(config, causal, T)
    layout, blocks = layout_of(whole), blocks_of(whole)
    place = torch.arange(T)[:, None], torch.arange(layout.columns)
    seen = mask_of(whole)(torch.tensor(0), torch.tensor(0), *place)
    size, first = layout.columns, layout.first
    padded = F.pad(seen, (0, -size % BLOCK, 0, -T % BLOCK)).unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    needed, covered = padded.any(3).any(1), padded.all(3).all(1)
    partial = listed(blocks.order, blocks.many)
    covering = listed(blocks.order_whole, blocks.many_whole)
    assert first % BLOCK == 0
    assert not (needed & ~(partial | covering)).any()
    assert torch.equal(needed[1:, first // BLOCK :], (partial | covering)[1:, first // BLOCK :])
    assert not (partial & covering).any()
    assert torch.equal(covering[:, first // BLOCK :], covered[:, first // BLOCK :])
    assert not covering[:, : first // BLOCK].any()


def listed(order, many):
    """Of each row the blocks that come first, so many; the others must follow."""
    found = torch.zeros(order.shape[2:], dtype=torch.bool)
    for row, (index, count) in enumerate(zip(order[0, 0].tolist(), many[0, 0].tolist(), strict=True)):
        assert sorted(index) == list(range(order.shape[3]))
        found[row, index[:count]] = True
    return found


def test_windows_that_begin_where_blocks_do_are_whole_blocks():
    blocks = blocks_of(whole_of(LongShort(window=256, rank=32), False, 4096))
    assert blocks.many_whole[0, 0, 4:-4].tolist() == [4] * 24
    assert blocks.many[0, 0].tolist() == [1] * 32  # summaries and sinks


@each_direction
def test_blocks_to_look_at_grow_as_the_length(causal):
    counts = [
        int(blocks.many.sum() + blocks.many_whole.sum())
        for blocks in (blocks_of(whole_of(LongShort(window=256, memory=16), causal, T)) for T in (4096, 8192))
    ]
    assert 1.9 < counts[1] / counts[0] < 2.1


def test_what_is_kept_from_inference_serves_gradients():
    with torch.inference_mode():
        whole = whole_of(LongShort(window=9, sinks=1), True, 211)
        tables, block_mask = tables_without_padding(whole, 1, torch.float32), flex._blocks(whole)
    assert not tables.by_query.is_inference()
    assert not block_mask.kv_indices.is_inference()


def test_operands_that_the_kernel_does_not_take():
    query = torch.zeros(1, 2, 256, 64)
    assert flex.fits(query, query, None, 0.0)
    assert not flex.usable(query, query, None, 0.0)  # not on a GPU
    assert not flex.fits(query, query, torch.zeros(2, 511), 0.0)
    assert not flex.fits(query, query, None, 0.1)
    assert not flex.fits(query.double(), query, None, 0.0)
    assert not flex.fits(query[..., :48], query, None, 0.0)
    assert not flex.fits(query, query[..., :8], None, 0.0)
    assert not flex.fits(query[:, :, :127], query, None, 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@each_direction
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[2]], ids=["latest", "dyadic"])
def test_compiled_for_a_cpu_it_skips_blocks_and_gives_the_same(config, causal, monkeypatch):
    compiled = torch.compile(flex_attention.flex_attention, fullgraph=True, dynamic=False)
    mixer = mixer_of(config, torch.float32, causal=causal, value_dim=8)
    tensors, named = operands(mixer, 700, 2, "left")
    with torch.no_grad():
        expected = mixer(*tensors, **named)
        monkeypatch.setattr(flex, "_flex_attention", lambda: compiled)
        monkeypatch.setattr(dispatch, "usable", lambda *operands: True)
        assert_close(mixer(*tensors, **named), expected)
