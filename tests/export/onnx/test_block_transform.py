"""Transforms as matrix products against torch.fft."""

import pytest
import torch
import torch.nn.functional as F

from remixer.export.onnx.block_transform import ROWS, by_rows, columns_for, inverse, product, transform
from remixer.export.onnx.block_transform import factors as factors_of
from remixer.testing import assert_close

LENGTHS = [1, 2, 63, 64, 65, 200, 1000]


def factors(columns, like):
    return factors_of(columns, *by_rows(like.dtype))


def spectrum(sequences, columns):
    """What `transform` gives, by torch.fft, complex: frequency f + rows * c at [f, c]."""
    whole = torch.fft.fft(F.pad(sequences, (0, 0, 0, ROWS * columns - sequences.shape[-2])), dim=-2)
    index = torch.arange(ROWS // 2 + 1)[:, None] + ROWS * torch.arange(columns)
    return whole[..., index, :]


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("rows", [ROWS // 2, ROWS])
def test_transform_is_the_fourier_transform(T, rows):
    torch.manual_seed(T)
    columns = columns_for(T)
    sequences = torch.randn(2, 3, rows * columns, 4, dtype=torch.float64)
    real, imaginary = transform(sequences, factors(columns, sequences)).unbind(-3)
    assert_close(torch.view_as_real(torch.complex(real, imaginary)), torch.view_as_real(spectrum(sequences, columns)))


@pytest.mark.parametrize("T", LENGTHS)
def test_a_product_of_transforms_is_a_convolution(T):
    torch.manual_seed(T)
    columns = columns_for(T)
    N = ROWS * columns
    values = F.pad(torch.randn(2, 3, T, 4, dtype=torch.float64), (0, 0, 0, N // 2 - T))
    kernel = torch.randn(3, N, 1, dtype=torch.float64)
    turns = factors(columns, values)
    mixed = inverse(product(transform(values, turns), transform(kernel, turns)), turns)
    expected = torch.fft.ifft(torch.fft.fft(values, N, dim=-2) * torch.fft.fft(kernel, dim=-2), dim=-2).real
    assert_close(mixed, expected[..., : N // 2, :])


def test_two_lengths_fit_side_by_side():
    for T in LENGTHS:
        assert ROWS * columns_for(T) >= 2 * T - 1


def test_float32_keeps_its_digits_at_long_lengths():
    torch.manual_seed(0)
    columns = columns_for(60000)
    values = torch.randn(1, ROWS // 2 * columns, 1)
    real, imaginary = transform(values, factors(columns, values)).unbind(-3)
    expected = spectrum(values.double(), columns)
    error = float((torch.complex(real, imaginary) - expected).abs().max() / expected.abs().max())
    assert error < 2e-6
