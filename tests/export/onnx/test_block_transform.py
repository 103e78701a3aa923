"""Transforms as matrix products against torch.fft."""

import pytest
import torch
import torch.nn.functional as F

from remixer.export.onnx.block_transform import by_rows, columns_for, inverse, product, rows_for, transform
from remixer.export.onnx.block_transform import factors as factors_of
from remixer.testing import assert_close

LENGTHS = [1, 2, 63, 64, 65, 200, 1000]
OF_SO_MANY_ROWS = pytest.mark.parametrize("rows", [128, 256, 512])


def factors(columns, like, rows):
    return factors_of(columns, *by_rows(rows, like.dtype))


def spectrum(sequences, columns, rows):
    """What `transform` gives, by torch.fft, complex: frequency f + rows * c at [f, c]."""
    whole = torch.fft.fft(F.pad(sequences, (0, 0, 0, rows * columns - sequences.shape[-2])), dim=-2)
    index = torch.arange(rows // 2 + 1)[:, None] + rows * torch.arange(columns)
    return whole[..., index, :]


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("half", [False, True])
@OF_SO_MANY_ROWS
def test_transform_is_the_fourier_transform(T, half, rows):
    torch.manual_seed(T)
    columns, filled = columns_for(T, rows), rows // 2 if half else rows
    sequences = torch.randn(2, 3, filled * columns, 4, dtype=torch.float64)
    real, imaginary = transform(sequences, factors(columns, sequences, rows))
    expected = spectrum(sequences, columns, rows)
    assert_close(torch.view_as_real(torch.complex(real, imaginary)), torch.view_as_real(expected))


@pytest.mark.parametrize("T", LENGTHS)
@OF_SO_MANY_ROWS
def test_a_product_of_transforms_is_a_convolution(T, rows):
    torch.manual_seed(T)
    columns = columns_for(T, rows)
    N = rows * columns
    values = F.pad(torch.randn(2, 3, T, 4, dtype=torch.float64), (0, 0, 0, N // 2 - T))
    kernel = torch.randn(3, N, 1, dtype=torch.float64)
    turns = factors(columns, values, rows)
    mixed = inverse(product(transform(values, turns), transform(kernel, turns)), turns)
    expected = torch.fft.ifft(torch.fft.fft(values, N, dim=-2) * torch.fft.fft(kernel, dim=-2), dim=-2).real
    assert_close(mixed, expected[..., : N // 2, :])


def test_two_lengths_fit_side_by_side():
    for T in LENGTHS:
        assert rows_for(T) * columns_for(T, rows_for(T)) >= 2 * T - 1


@pytest.mark.parametrize("T", [8000, 60000])
def test_float32_keeps_its_digits_at_long_lengths(T):
    torch.manual_seed(0)
    rows = rows_for(T)
    columns = columns_for(T, rows)
    values = torch.randn(1, rows // 2 * columns, 1)
    real, imaginary = transform(values, factors(columns, values, rows))
    expected = spectrum(values.double(), columns, rows)
    error = float((torch.complex(real, imaginary) - expected).abs().max() / expected.abs().max())
    assert error < 2e-6
