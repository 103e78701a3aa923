import pytest
import torch

from remixer.mixers import MixerConfigError, Toeplitz2d
from remixer.testing import assert_close

HEADS, CHANNELS = 2, 3
SIZES = [(1, 1, 1), (1, 7, 2), (5, 1, 1), (5, 7, 3), (8, 4, 2)]  # height, width, batch
each_size = pytest.mark.parametrize(("height", "width", "B"), SIZES)


def case(height, width, B, dtype=torch.float64, padded=False):
    torch.manual_seed(height * 100 + width)
    value = torch.randn(B, HEADS, height, width, CHANNELS, dtype=torch.float64).to(dtype).requires_grad_()
    padding = torch.rand(B, height, width) > 0.3
    return value, padding if padded else None


def gradients(out, operator, value):
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype) / out[0, 0].numel()
    return torch.autograd.grad((out * weight).sum(), [value, *operator.parameters()])


def coefficient(encoder, k, decay):
    return encoder(torch.tensor([k]))[:, 0].view(HEADS, CHANNELS) * decay ** abs(k)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("height", "width", "B"), SIZES[:4])
def test_it_is_the_sum_over_all_pairs_of_pixels(height, width, B, padded):
    operator = Toeplitz2d(HEADS, CHANNELS, decay=0.8, rpe_width=8).double()
    value, padding = case(height, width, B, padded=padded)
    rows, columns = operator.along_rows.encoder, operator.along_columns.encoder
    expected = torch.zeros_like(value)
    for i, j, k, m in torch.cartesian_prod(*(torch.arange(size) for size in (height, width, height, width))).tolist():
        factor = coefficient(columns, i - k, 0.8) * coefficient(rows, j - m, 0.8)
        exists = 1.0 if padding is None else padding[:, k, m].double()[:, None, None]
        expected = expected.index_put(
            (torch.arange(B)[:, None], torch.arange(HEADS), torch.tensor(i), torch.tensor(j)),
            factor * value[:, :, k, m] * exists,
            accumulate=True,
        )
    assert_close(operator(value, padding), expected)
    assert_close(gradients(operator(value, padding), operator, value), gradients(expected, operator, value))


@each_size
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_its_reference_in_values_and_gradients(height, width, B, dtype, padded):
    operator = Toeplitz2d(HEADS, CHANNELS, decay=None).to(dtype)
    value, padding = case(height, width, B, dtype, padded)
    out, expected = operator(value, padding), operator.reference(value, padding)
    assert out.dtype == dtype
    assert_close(out.detach(), expected.detach())
    assert_close(gradients(out, operator, value), gradients(expected, operator, value))
    operator.eval()
    with torch.no_grad():
        assert_close(operator(value, padding), expected.detach())


def test_the_published_sum_is_twice_as_much():
    operator = Toeplitz2d(HEADS, CHANNELS).double()
    value, _ = case(5, 7, 2)

    def along(mixer, axis, pixels):
        last = pixels.movedim(axis, 3).transpose(1, 2)
        mixed = mixer(value=last.flatten(0, 1)).unflatten(0, last.shape[:2])
        return mixed.transpose(1, 2).movedim(3, axis)

    columns_last = along(operator.along_columns, 2, along(operator.along_rows, 3, value))
    rows_last = along(operator.along_rows, 3, along(operator.along_columns, 2, value))
    assert_close((columns_last + rows_last).detach(), 2.0 * operator(value).detach())


def test_what_does_not_exist_has_no_influence():
    operator = Toeplitz2d(HEADS, CHANNELS).double()
    value, padding = case(5, 7, 3, padded=True)
    changed = value.masked_fill(~padding[:, None, ..., None], 50.0)
    assert_close(operator(changed, padding).detach(), operator(value, padding).detach())
    padding = torch.zeros(1, 5, 7, dtype=torch.bool)
    padding[:, 2:, :4] = True  # an image of 3 x 4 in a larger one
    alone = operator(value[:1, :, 2:, :4]).detach()
    assert_close(operator(value[:1], padding)[:, :, 2:, :4].detach(), alone)


def test_a_bad_option_is_refused():
    with pytest.raises(MixerConfigError, match=r"decay must lie in \(0, 1\], got 1.5"):
        Toeplitz2d(1, 1, decay=1.5)
