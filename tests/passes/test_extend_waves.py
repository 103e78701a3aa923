"""Sines and cosines: fixed tables that go on by their formula, and rotary embeddings that are slowed down."""

import pytest
import torch
from torch import nn

from remixer.passes.errors import ExtendError
from remixer.passes.extend_positions import ExtendPositions
from remixer.passes.longer_tables import Growth, longer_waves, waves_of
from remixer.passes.scale_rotary import scale_of
from remixer.rewrite.capture import capture
from remixer.testing import assert_close

OLD, LONG, SIZE = 16, 64, 8


def sinusoid(rows, width=SIZE, layout="halves", dtype=torch.float32):
    frequencies = 10000 ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.arange(rows).float()[:, None] * frequencies
    parts = {"halves": (angles.sin(), angles.cos()), "swapped": (angles.cos(), angles.sin())}
    if layout == "turns":
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(dtype)
    return torch.cat(parts[layout], -1).to(dtype)


@pytest.mark.parametrize("layout", ["halves", "swapped", "turns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_table_of_sines_goes_on_by_its_formula(layout, dtype):
    table = sinusoid(100, layout=layout, dtype=dtype)
    longer = longer_waves(table, 0, Growth(0, 300), torch.ones_like)
    assert torch.equal(longer[:100], table)
    rough = 0.05 if dtype is torch.bfloat16 else 1e-4
    assert (longer - sinusoid(300, layout=layout, dtype=dtype)).abs().max() < rough


@pytest.mark.parametrize("change", [
    lambda table: table + 0.01 * torch.randn_like(table),
    lambda table: table.flip(0)[torch.randperm(len(table))],
    lambda table: torch.cat([table[:50], table[:50]]),
    torch.randn_like,
])  # fmt: skip
def test_what_is_nearly_sines_is_none(change):
    assert waves_of(change(sinusoid(100))) is None


def test_the_row_of_padding_stays_zero():
    table = sinusoid(100)
    table[1] = 0
    longer = longer_waves(table, 0, Growth(2, 200), torch.ones_like)
    assert torch.equal(longer[:100], table)
    assert (longer[100:] - sinusoid(200)[100:]).abs().max() < 1e-4


class Fixed(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.register_buffer("table", sinusoid(rows), persistent=False)

    def forward(self, x):
        return x + self.table[: x.shape[1]]


def test_a_fixed_table_is_extended_in_a_program():
    result = ExtendPositions(LONG)(capture(Fixed(OLD), torch.randn(2, 7, SIZE)))
    x = torch.randn(2, LONG, SIZE)
    assert (result.graph_module(x) - Fixed(LONG)(x)).abs().max() < 1e-4
    assert "sines and cosines by their formula" in result.program.extended[0]


class Rotary(nn.Module):
    """Queries turned by angles, as `spelling` writes them."""

    def __init__(self, spelling="outer", frequencies=None):
        super().__init__()
        held = 10000 ** (-torch.arange(0, SIZE, 2).float() / SIZE) if frequencies is None else frequencies
        self.register_buffer("inv_freq", held, persistent=False)
        self.spelling = spelling

    def forward(self, x, position_ids=None):
        places = torch.arange(x.shape[1]) if position_ids is None else position_ids
        if self.spelling == "matmul":
            expanded = self.inv_freq[None, :, None].expand(x.shape[0], -1, 1)
            angles = (expanded @ places[None, None].float().expand(x.shape[0], 1, -1)).transpose(1, 2)
        else:
            angles = places[..., None].float() * self.inv_freq
        if self.spelling == "turns":
            angles = angles.repeat_interleave(2, -1)
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        else:
            angles = torch.cat([angles, angles], -1)
            turned = torch.cat([-x[..., SIZE // 2 :], x[..., : SIZE // 2]], -1)
        return x * angles.cos() + turned * angles.sin()


SPELLINGS = ["outer", "matmul", "turns"]


def ntk_base(ratio):
    return 10000 * ratio ** (SIZE / (SIZE - 2))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rotary", ["interpolate", "ntk"])
def test_rotary_embeddings_are_scaled_as_published(spelling, rotary):
    ratio = LONG / OLD
    result = ExtendPositions(LONG, rotary=rotary, trained_length=OLD)(
        capture(Rotary(spelling), torch.randn(2, 7, SIZE))
    )
    slower = Rotary(spelling).inv_freq / ratio
    if rotary == "ntk":
        slower = ntk_base(ratio) ** (-torch.arange(0, SIZE, 2).float() / SIZE)
    x = torch.randn(2, LONG, SIZE)
    assert (result.graph_module(x) - Rotary(spelling, slower)(x)).abs().max() < 1e-4
    assert (result.graph_module(x) - Rotary(spelling)(x)).abs().max() > 0.1
    assert "trained up to 16" in result.program.extended[0]


def test_positions_that_are_an_input_are_scaled_too():
    given = {"x": torch.randn(2, 7, SIZE), "position_ids": torch.arange(7).expand(2, -1)}
    found = ExtendPositions(LONG, rotary="interpolate", trained_length=OLD)(capture(Rotary(), given)).graph_module
    x, places = torch.randn(2, 9, SIZE), 3 * torch.arange(9).expand(2, -1)
    expected = Rotary(None, Rotary().inv_freq / 4)(x, places)
    assert (found(x=x, position_ids=places) - expected).abs().max() < 1e-4


def test_ntk_leaves_the_fastest_frequency_and_divides_the_slowest():
    factors = scale_of("ntk", 4.0)(torch.tensor([1.0, 0.1, 0.01, 1.0, 0.1, 0.01], dtype=torch.float64))
    assert_close(factors, torch.tensor([1, 0.5, 0.25] * 2, dtype=torch.float64))


def test_without_scaling_rotary_embeddings_stay():
    result = ExtendPositions(LONG)(capture(Rotary(), torch.randn(2, 7, SIZE)))
    assert "rotary angles go on beyond those of training" in result.program.extended[0]


@pytest.mark.parametrize(("model", "options", "word"), [
    (Rotary(), {"rotary": "ntk"}, "give it as trained_length"),
    (Rotary(frequencies=torch.tensor([1.0, 0.9, 0.2, 0.01])), {"rotary": "ntk", "trained_length": OLD},
     "no geometric sequence"),
    (nn.Linear(SIZE, SIZE), {"rotary": "interpolate", "trained_length": OLD}, "no sines and cosines of positions"),
])  # fmt: skip
def test_what_cannot_be_scaled_is_refused(model, options, word):
    with pytest.raises(ExtendError, match=word):
        ExtendPositions(LONG, **options)(capture(model, torch.randn(2, 7, SIZE)))


def test_a_cache_of_rotary_angles_is_scaled_by_its_formula():
    result = ExtendPositions(LONG, rotary="interpolate")(capture(Fixed(OLD), torch.randn(2, 7, SIZE)))
    found = result.graph_module(torch.zeros(1, LONG, SIZE))[0]
    assert (found[::4] - sinusoid(OLD)).abs().max() < 1e-4
