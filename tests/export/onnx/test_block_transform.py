"""Transforms as matrix products against torch.fft."""

import pytest
import torch
import torch.nn.functional as F

from remixer.export.onnx.block_transform import factors, inverse, product, sizes_for, transform
from remixer.testing import assert_close

LENGTHS = [1, 2, 31, 32, 33, 200, 1000, 1024, 1025, 4100]


def spectrum(sequences, columns, rows):
    """What `transform` gives, by torch.fft, complex: frequency f + rows * c at [f, c]."""
    whole = torch.fft.fft(F.pad(sequences, (0, 0, 0, rows * columns - sequences.shape[-2])), dim=-2)
    index = torch.arange(rows // 2 + 1)[:, None] + rows * torch.arange(columns)
    return whole[..., index, :]


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("half", [False, True])
def test_transform_is_the_fourier_transform(T, half):
    torch.manual_seed(T)
    rows, columns = sizes_for(T)
    sequences = torch.randn(2, 3, (rows // 2 if half else rows) * columns, 4, dtype=torch.float64)
    real, imaginary = transform(sequences, factors(T, sequences))
    expected = spectrum(sequences, columns, rows)
    assert_close(torch.view_as_real(torch.complex(real, imaginary)), torch.view_as_real(expected))


@pytest.mark.parametrize("T", LENGTHS)
def test_a_product_of_transforms_is_a_convolution(T):
    torch.manual_seed(T)
    rows, columns = sizes_for(T)
    N = rows * columns
    values = F.pad(torch.randn(2, 3, T, 4, dtype=torch.float64), (0, 0, 0, N // 2 - T))
    kernel = torch.randn(3, N, 1, dtype=torch.float64)
    turns = factors(T, values)
    mixed = inverse(product(transform(values, turns), transform(kernel, turns)), turns)
    expected = torch.fft.ifft(torch.fft.fft(values, N, dim=-2) * torch.fft.fft(kernel, dim=-2), dim=-2).real
    assert_close(mixed, expected[..., : N // 2, :])


@pytest.mark.parametrize("T", [*LENGTHS, 100_000, 2_000_000])
def test_two_lengths_fit_side_by_side_and_hardly_more(T):
    rows, columns = sizes_for(T)
    assert 2 * T <= rows * columns < 2 * T + rows


@pytest.mark.parametrize("T", [8000, 60000])
def test_float32_keeps_its_digits_at_long_lengths(T):
    torch.manual_seed(0)
    rows, columns = sizes_for(T)
    values = torch.randn(1, rows // 2 * columns, 1)
    real, imaginary = transform(values, factors(T, values))
    expected = spectrum(values.double(), columns, rows)
    error = float((torch.complex(real, imaginary) - expected).abs().max() / expected.abs().max())
    assert error < 2e-6
