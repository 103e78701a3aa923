import pytest
import torch

from remixer.mixers import AttentionSpec, FrequencyToeplitz, FrequencyToeplitzMixer
from remixer.mixers.frequency_toeplitz import causal_response
from remixer.testing import assert_close


def mixer_of(config=None, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    options = {"heads": 4, "kv_heads": 2, "head_dim": 5, "value_dim": 3, "scale": 0.4, **changes}
    mixer = FrequencyToeplitzMixer(AttentionSpec(**options), config or FrequencyToeplitz())
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype)


def hilbert_reference(real):
    """The sums by which the imaginary part follows from the real one, for one sequence."""
    T = len(real) - 1
    full = torch.cat([real, real[1:-1].flip(0)])  # of the frequencies pi k / T, k = 0..2 T - 1
    angle = torch.pi / T * torch.outer(torch.arange(2 * T), torch.arange(2 * T)).double()
    even = (full * angle.cos()).sum(-1) / (2 * T)
    taps = [even[0], *(2.0 * even[k] for k in range(1, T)), even[T]]
    return sum(taps[k] * torch.polar(torch.ones(T + 1).double(), -angle[k, : T + 1]) for k in range(T + 1))


@pytest.mark.parametrize("T", [1, 2, 7, 64, 501])
def test_a_causal_response_has_the_given_real_part_and_nothing_before_offset_zero(T):
    real = torch.randn(T + 1, dtype=torch.float64)
    response = causal_response(real)
    assert float((response.real - real).abs().max()) < 1e-12
    assert float(torch.fft.irfft(response, 2 * T)[T + 1 :].abs().sum()) < 1e-12
    assert_close(torch.view_as_real(response), torch.view_as_real(hilbert_reference(real)))
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(response.real, real + 1e-9 * real.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("T", [1, 2, 9, 40])
def test_bidirectional_coefficients_have_the_response_that_the_encoder_gives(T):
    mixer = mixer_of()
    response = mixer.response(T).detach()
    assert response.shape == (4, 3, T + 1)
    frequencies = torch.arange(T + 1).double() * torch.pi / T
    real, imaginary = mixer.encoder(frequencies).detach().unflatten(0, (2, 4, 3))
    imaginary[..., [0, -1]] = 0.0
    assert_close(torch.view_as_real(response), torch.stack([real, imaginary], -1))
    assert mixer.coefficients(T).shape == (4, 3, 2 * T - 1)


@pytest.mark.parametrize("causal", [False, True])
def test_coefficients_are_what_values_are_convolved_with(causal):
    mixer = mixer_of(causal=causal, kv_heads=4)
    T = 12
    delta = torch.zeros(1, 4, T, 3, dtype=torch.float64)
    delta[:, :, 5] = 1.0
    coefficients = mixer.coefficients(T).detach()
    if causal:
        coefficients = torch.nn.functional.pad(coefficients, (T - 1, 0))
    assert_close(mixer(value=delta)[0].detach(), coefficients[..., T - 1 - 5 : 2 * T - 1 - 5].transpose(1, 2))


def test_a_smooth_response_gives_coefficients_that_hardly_depend_on_the_length():
    mixer = mixer_of(FrequencyToeplitz(rpe_layers=0), causal=True)
    short, long = (mixer.coefficients(T).detach() for T in (512, 1024))
    error = (short[..., :64] - long[..., :64]).abs().max() / long.abs().max()
    assert float(error) < 1e-2


def test_steps_are_forward_over_the_length_of_the_state():
    for config in (FrequencyToeplitz(), FrequencyToeplitz(gate="value", per="head")):
        mixer = mixer_of(config, causal=True)
        value, padding = torch.randn(2, 2, 11, 3, dtype=torch.float64), torch.rand(2, 11) > 0.4
        state, out = mixer.initial_state(2, 11, value), []
        for t in range(11):
            step, state = mixer.step(state, value=value[:, :, t, None], padding=padding[:, t, None])
            out.append(step)
        assert_close(torch.cat(out, 2), mixer(value=value, padding=padding))


def test_autocast_and_bfloat16_leave_the_response_in_float32():
    mixer = mixer_of(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer.response(300).dtype == torch.complex64
        assert mixer(value=torch.randn(1, 2, 9, 3)).dtype == torch.float32


def test_cross_attention_is_refused_by_its_own_name():
    spec = AttentionSpec(heads=2, kv_heads=2, head_dim=4, value_dim=4, scale=0.5, cross=True)
    reason = FrequencyToeplitzMixer.supports(spec, FrequencyToeplitz())
    assert str(reason) == "'frequency_toeplitz' needs as many queries as keys, this is cross-attention"
