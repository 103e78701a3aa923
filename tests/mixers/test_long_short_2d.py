import pytest
import torch
import torch.nn.functional as F

from remixer.mixers import LongShort2d, MixerConfigError
from remixer.mixers.long_short.windows_2d import Tiling2d
from remixer.testing import assert_close

WIDTH, HEADS = 24, 3
# height, width, batch, padding
SIZES = [
    (1, 1, 1, "none"),
    (1, 1, 2, "whole"),
    (1, 9, 2, "left"),
    (7, 1, 1, "none"),
    (5, 7, 3, "left"),
    (8, 4, 2, "right"),
    (6, 9, 2, "holes"),
    (4, 5, 2, "whole"),
]
OPTIONS = [
    {"window": 2, "rank": 3},
    {"window": 3, "rank": 2, "bias": True},
    {"window": 1, "rank": 1, "dual_norm": False},
    {"window": 4, "rank": 0},
    {"window": 16, "rank": 2},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def case(height, width, B, padding, dtype=torch.float64):
    torch.manual_seed(height * 100 + width)
    hidden = torch.randn(B, height, width, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    row = torch.arange(B)[:, None, None]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    masks = {
        "none": None,
        "left": ((rows >= row) | (height == 1)) & (columns >= row.clamp(max=width - 1)),
        "right": (rows < height - row) & (columns < width - row),
        "holes": torch.rand(B, height, width) > 0.4,
        "whole": (row != B - 1).expand(B, height, width),
    }
    return hidden, masks[padding]


def layer_of(dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = LongShort2d(WIDTH, HEADS, **options)
    for parameter in [
        layer.pooling,
        *(p for norm in (layer.window_norm, layer.summary_norm) if norm for p in norm.parameters()),
    ]:
        if parameter is not None:  # nothing at its harmless start
            torch.nn.init.normal_(parameter, std=0.5)
    return layer.to(dtype)


def gradients(outs, leaves):
    loss = sum(
        (out * torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)).sum()
        / out[0].numel() ** 0.5
        for out in outs
    )
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


@each_option
@each_dtype
@pytest.mark.parametrize("count", [0, 1, 2])
def test_it_is_its_reference_in_values_and_gradients(options, dtype, count):
    for height, width, B, padding in SIZES if dtype == torch.float64 else SIZES[::2]:
        layer = layer_of(dtype, **options)
        hidden, mask = case(height, width, B, padding, dtype)
        tokens = torch.randn(B, count, WIDTH, dtype=torch.float64).to(dtype).requires_grad_() if count else None
        out, expected = layer(hidden, tokens, mask), layer.reference(hidden, tokens, mask)
        leaves = [hidden, *layer.parameters(), *([tokens] if count else [])]
        out, expected = (x if count else (x,) for x in (out, expected))
        assert all(each.dtype == dtype for each in out)
        assert_close([x.detach() for x in out], [x.detach() for x in expected])
        assert_close(gradients(out, leaves), gradients(expected, leaves))
        with torch.no_grad():
            found = layer.eval()(hidden, tokens, mask)
            assert_close(found if count else (found,), [x.detach() for x in expected])


def by_hand(layer, image, kept, window, own):
    """Equation 5 and the second pass for one image, cell by cell, without any module of ours."""
    D, margin = WIDTH // HEADS, max(window // 2, 1)
    norms = [
        lambda x, n=n: F.layer_norm(x, (WIDTH,), n.weight, n.bias) for n in (layer.window_norm, layer.summary_norm)
    ]
    cut = [slice(h * D, (h + 1) * D) for h in range(HEADS)]
    cells = torch.stack([image[i, j] for i, j in kept])
    P = [torch.softmax(cells @ layer.pooling[h], 0) for h in range(HEADS)]
    far_k, far_v = (
        norms[1](torch.cat([P[h].T @ each(cells)[:, c] for h, c in enumerate(cut)], 1))
        for each in (layer.key, layer.value)
    )
    k, v, own_k, own_v = (norms[0](each(x)) for x in (cells, own) for each in (layer.key, layer.value))
    mixed = torch.zeros_like(cells)
    for t, (i, j) in enumerate(kept):
        top, left = i // window * window - margin, j // window * window - margin
        side = window + 2 * margin
        near = [s for s, (y, x) in enumerate(kept) if top <= y < top + side and left <= x < left + side]
        keys, values = torch.cat([far_k, k[near], own_k]), torch.cat([far_v, v[near], own_v])
        for c in cut:
            mixed[t, c] = torch.softmax(keys[:, c] @ layer.query(cells[t])[c] / D**0.5, 0) @ values[:, c]
    second = torch.zeros_like(own)
    for t in range(len(own)):
        for c in cut:
            keys, values = torch.cat([own_k[:, c], mixed[:, c]]), torch.cat([own_v[:, c], mixed[:, c]])
            second[t, c] = torch.softmax(keys @ layer.query(own[t])[c] / D**0.5, 0) @ values
    return layer.out(mixed), layer.out(second)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_it_is_the_published_formula(window):
    layer = layer_of(window=window, rank=2).eval()
    hidden, padding = case(6, 9, 2, "holes")
    own = torch.randn(2, 2, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        image, classes = layer(hidden, own, padding)
        for b in range(2):
            kept = padding[b].nonzero().tolist()
            expected, expected_classes = by_hand(layer, hidden[b], kept, window, own[b])
            assert_close(image[b][padding[b]], expected)
            assert_close(classes[b], expected_classes)


def test_the_comparison_can_fail():
    hidden, _ = case(6, 9, 2, "none")
    out, other = (layer_of(window=window).reference(hidden).detach() for window in (2, 3))
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(layer_of(window=2)(hidden).detach(), other)
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(out + 1e-6, out)


@pytest.mark.parametrize(("window", "side"), [(1, 3), (2, 4), (7, 13), (8, 16)])
def test_a_window_is_as_large_as_published(window, side):
    tiling = Tiling2d(window)
    assert tiling.keys(torch.zeros(1, 1, 3 * window, 2 * window + 1, 1)).shape == (1, 9, 1, side**2, 1)


def test_tiles_hold_every_cell_once():
    image = torch.randn(2, 3, 5, 7, 4)
    assert torch.equal(Tiling2d(3).untiled(Tiling2d(3).queries(image), 5, 7), image)


def test_what_does_not_exist_has_no_influence():
    layer = layer_of(window=2).eval()
    hidden, padding = case(5, 7, 3, "left")
    changed = hidden.masked_fill(~padding[..., None], 50.0)
    assert_close(layer(changed, padding=padding)[padding].detach(), layer(hidden, padding=padding)[padding].detach())
    padding = torch.zeros(1, 5, 7, dtype=torch.bool)
    padding[:, 2:, :4] = True  # an image of 3 x 4, from a window's corner on, in a larger one
    alone = layer(hidden[:1, 2:, :4])
    assert_close(layer(hidden[:1], padding=padding)[:, 2:, :4].detach(), alone.detach())


def test_dropout_acts_in_training_only():
    layer = layer_of(window=2, dropout=0.5)
    hidden, _ = case(5, 7, 1, "none")
    assert float((layer(hidden) - layer(hidden)).detach().abs().max()) > 1e-3
    assert_close(layer.eval()(hidden).detach(), layer.reference(hidden).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "5 heads can't share a width of 24"),
        ({"window": 0}, "window must be at least 1, rank at least 0, got 0 and 8"),
        ({"rank": -1}, "window must be at least 1, rank at least 0, got 7 and -1"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(options, message):
    with pytest.raises(MixerConfigError, match=f"LongShort2d: {message}"):
        LongShort2d(**{"width": WIDTH, "heads": HEADS, **options})
