import math

import pytest
import torch

from remixer.mixers.state_space import empty_states, state_space_reference, step_states, to_state_space
from remixer.testing import assert_close


def log_of(decay):
    return torch.full((1, 1), math.log(decay), dtype=torch.float64)


def impulse_response(poles, weights, n, state=torch.complex128):
    """What the recurrence gives for 1, 0, 0, ...: (H, E, n), with the state in a given precision."""
    poles, weights = poles.to(state), weights.to(state)
    u, out = torch.ones_like(poles).expand_as(weights), []
    for _ in range(n):
        out.append((weights * u).real.sum(-1))
        u = u * poles
    return torch.stack(out, -1)


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 64])
def test_the_response_to_an_impulse_is_the_coefficients(n, decay):
    t = torch.randn(2, 3, n, dtype=torch.float64)
    poles, weights = to_state_space(t, log_of(decay))
    assert poles.shape == (1, 1, math.ceil(n / 2))
    assert weights.shape == (2, 3, math.ceil(n / 2))
    expected = t * decay ** torch.arange(n, dtype=torch.float64)
    assert_close(impulse_response(poles, weights, n), expected)
    assert_close(impulse_response(*state_space_reference(t, log_of(decay)), n), expected)
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(impulse_response(poles, weights, n), expected * 1.001)


def test_half_of_the_published_poles_with_the_weights_of_pairs_doubled():
    t = torch.randn(1, 1, 8, dtype=torch.float64)
    (poles, weights), (all_poles, all_weights) = (f(t, log_of(0.9)) for f in (to_state_space, state_space_reference))
    assert_close(torch.view_as_real(poles), torch.view_as_real(all_poles[..., :4]))
    assert_close(torch.view_as_real(weights), torch.view_as_real(2.0 * all_weights[..., :4]))
    assert_close(torch.view_as_real(all_poles[..., 4:].flip(-1)), torch.view_as_real(poles.conj().resolve_conj()))


def test_decays_of_their_own_for_every_head_and_channel():
    t, decay = torch.randn(2, 3, 9, dtype=torch.float64), 0.8 + 0.2 * torch.rand(2, 3, dtype=torch.float64)
    poles, weights = to_state_space(t, decay.log())
    assert_close(impulse_response(poles, weights, 9), t * decay[..., None] ** torch.arange(9, dtype=torch.float64))


def test_beyond_n_tokens_the_kernel_repeats_itself_and_fades():
    n, decay = 6, 0.9
    t = torch.randn(1, 1, n, dtype=torch.float64)
    closed = torch.cat([t, -t.sum(-1, keepdim=True)], -1)
    expected = closed.repeat(1, 1, 3) * decay ** torch.arange(3 * (n + 1), dtype=torch.float64)
    assert_close(impulse_response(*to_state_space(t, log_of(decay)), 3 * (n + 1)), expected)


def test_steps_are_the_sums_over_earlier_tokens():
    t = torch.rand(4, 3, 20, dtype=torch.float64)
    values, exist = torch.randn(2, 2, 20, 3, dtype=torch.float64), (torch.rand(2, 1, 20, 1) > 0.3).double()
    state = empty_states(t, log_of(0.95), batch=2, heads=2, channels=3, counted=(1, 1))
    kernel = (t * 0.95 ** torch.arange(20, dtype=torch.float64)).transpose(1, 2)
    for i in range(20):
        mixed, seen, state = step_states(state, (values * exist)[:, :, i, None], exist[:, :, i, None])
        past = (values * exist)[:, :, : i + 1].flip(2).repeat_interleave(2, 1)
        assert_close(mixed[:, :, 0], (past * kernel[:, : i + 1]).sum(2))
        assert_close(seen[:, :, 0], (exist[:, :, : i + 1].flip(2) * kernel[:, : i + 1]).sum(2))


def drift(n, decay, state):
    """|response - t| / |t| over n tokens."""
    t = torch.rand(1, 4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = t * decay ** torch.arange(n, dtype=torch.float64)
    response = impulse_response(*to_state_space(t, log_of(decay)), n, state).double()
    return float((response - expected).norm() / expected.norm())


@pytest.mark.parametrize("n", [64, 512, 2048])
@pytest.mark.parametrize("decay", [1.0, 0.99])
def test_rounding_is_what_the_docstring_says(n, decay):
    from remixer.mixers import state_space

    table = {}
    for line in state_space.__doc__.splitlines():
        words = line.split()
        if len(words) == 5 and words[0].startswith("complex"):
            table[words[0], float(words[1])] = dict(zip((64, 512, 2048), map(float, words[2:]), strict=True))
    for state in (torch.complex64, torch.complex128):
        said = table[str(state).removeprefix("torch."), decay][n]
        measured = drift(n, decay, state)
        assert said / 5 < measured < 5 * said, f"{state}: {measured:.1e}, said to be {said:.1e}"
