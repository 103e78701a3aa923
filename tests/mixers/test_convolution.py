import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remixer.mixers.convolution import (
    _convolve_in_place,
    spectrum_of,
    toeplitz_product,
    toeplitz_reference,
    transform_length,
    transformed_at_once,
)
from remixer.testing import assert_close


def operands(T, causal, B=2, G=2, H=4, E=3, per_channel=True, dtype=torch.float64):
    torch.manual_seed(T)
    offsets = T if causal else 2 * T - 1
    return torch.randn(H, E if per_channel else 1, offsets, dtype=dtype), torch.randn(B, G, T, E, dtype=dtype)


@settings(deadline=None, max_examples=40)
@given(
    T=st.integers(1, 70),
    B=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    per_channel=st.booleans(),
    causal=st.booleans(),
    grad=st.booleans(),
)
def test_fft_is_the_dense_matrix(T, B, groups, per_channel, causal, grad):
    coefficients, values = operands(T, causal, B, 2, 2 * groups, 3, per_channel)
    with torch.set_grad_enabled(grad):
        assert_close(toeplitz_product(coefficients, values, causal), toeplitz_reference(coefficients, values, causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("G", "per_channel"), [(4, True), (2, True), (4, False)])
@pytest.mark.parametrize("T", [1, 2, 37])
def test_all_at_once_as_on_a_gpu(T, G, per_channel, causal):
    coefficients, values = operands(T, causal, G=G, per_channel=per_channel)
    before, length = values.clone(), transform_length(T)
    rows = torch.rand(4, coefficients.shape[1], T, dtype=torch.float64)
    spectrum = spectrum_of(coefficients, length, causal)
    expected = toeplitz_reference(coefficients, values, causal)
    assert_close(_convolve_in_place(spectrum, values, length, None), expected)
    assert_close(_convolve_in_place(spectrum, values, length, rows), expected * rows.transpose(1, 2))
    assert values.equal(before)
    low = values.bfloat16()
    wide = torch.fft.rfft(low.double().transpose(2, 3), length)
    assert_close(transformed_at_once(low, length, torch.float64), wide)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_dense_matrix(causal):
    leaves = [leaf.requires_grad_() for leaf in operands(19, causal)]
    weight = torch.randn(2, 4, 19, 3, dtype=torch.float64)
    fast, slow = (
        torch.autograd.grad((product(*leaves, causal) * weight).sum(), leaves)
        for product in (toeplitz_product, toeplitz_reference)
    )
    assert_close(fast, slow)


def test_float32_error_is_relative_to_the_norm_at_long_lengths():
    coefficients, values = operands(4096, True, B=1, G=1, H=1, E=2)
    exact = toeplitz_product(coefficients, values, True)
    single = toeplitz_product(coefficients.float(), values.float(), True)
    assert single.dtype == torch.float32
    assert float((single.double() - exact).norm() / exact.norm()) < 1e-6


def test_many_short_and_few_long_sequences_take_the_same_path():
    for T, B, H, E in ((3, 40, 3, 5), (700, 2, 5, 40)):
        coefficients, values = operands(T, False, B, H, H, E)
        with torch.no_grad():
            whole = torch.einsum("hekt,bhte->bhke", dense(coefficients, T), values)
            assert_close(toeplitz_product(coefficients, values, False), whole)


def dense(coefficients, T):
    index = torch.arange(T)
    return coefficients[..., index[:, None] - index + T - 1]


def test_shifted_values_give_shifted_results():
    coefficients, values = operands(32, False)
    values[:, :, 20:] = 0.0
    shifted = torch.roll(values, 5, 2)
    out, later = (toeplitz_product(coefficients, each, False) for each in (values, shifted))
    assert_close(later[:, :, 5:], out[:, :, :-5])


def test_a_delta_changes_nothing():
    coefficients, values = operands(9, False, G=4)
    coefficients.zero_()[..., 8] = 1.0
    assert_close(toeplitz_product(coefficients, values, False), values)


def test_a_geometric_kernel_is_a_moving_average():
    coefficients = 0.9 ** torch.arange(50, dtype=torch.float64).expand(1, 1, -1)
    values = torch.randn(1, 1, 50, 4, dtype=torch.float64)
    state, expected = torch.zeros(4, dtype=torch.float64), []
    for t in range(50):
        state = 0.9 * state + values[0, 0, t]
        expected.append(state)
    assert_close(toeplitz_product(coefficients, values, True)[0, 0], torch.stack(expected))


def test_a_symmetric_kernel_is_its_own_transpose():
    coefficients, values = operands(21, False, G=4)
    coefficients = coefficients + coefficients.flip(-1)
    other = torch.randn_like(values)
    left = (toeplitz_product(coefficients, values, False) * other).sum()
    assert_close(left, (toeplitz_product(coefficients, other, False) * values).sum())


def test_transform_lengths_are_small_and_have_small_factors():
    for T in range(1, 3000):
        length = transform_length(T)
        assert 2 * T - 1 <= length <= max(2, 4 / 3 * (2 * T - 1))
        assert length % 2 == 0
        while length % 2 == 0:
            length //= 2
        assert length in (1, 3, 5, 9)
