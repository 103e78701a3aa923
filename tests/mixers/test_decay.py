import pytest
import torch

from remixer.mixers import AttentionSpec, MixerConfigError, Toeplitz, ToeplitzMixer
from remixer.mixers.decay import Decay, fixed_decay
from remixer.testing import assert_close


def by_hand(floor, raw, offsets):
    """lambda^|k| as it is defined."""
    decay = floor + (1.0 - floor) * torch.sigmoid(raw.double())
    return decay[..., None] ** offsets.abs()


@pytest.mark.parametrize("floor", [0.5, 0.99, 0.9999])
def test_it_is_a_power_of_a_number_between_the_floor_and_one(floor):
    decay, offsets = Decay(floor, heads=3, channels=4).double(), torch.arange(-20, 21)
    fast, slow = decay(offsets).exp(), by_hand(floor, decay.raw, offsets)
    assert_close(fast, slow)
    weight = torch.randn_like(fast)
    gradients = [torch.autograd.grad((each * weight).sum(), decay.raw) for each in (fast, slow)]
    assert float(gradients[0][0].abs().min()) > 0.0
    assert_close(*gradients)
    with pytest.raises(AssertionError, match="largest error"):
        assert_close(decay(offsets + 1).exp(), slow)


def test_saturated_ones_stay_inside_and_have_finite_gradients():
    decay = Decay(0.99, heads=1, channels=3)
    with torch.no_grad():
        decay.raw.copy_(torch.tensor([[-60.0, 0.0, 60.0]]))
    fade = decay(torch.tensor([0, 1, 20_000]))
    fade.exp().sum().backward()
    assert bool(decay.raw.grad.isfinite().all())
    assert_close(fade.exp()[0, :, 1].detach(), torch.tensor([0.99, 0.995, 1.0]))
    assert float(fade.detach().exp()[0, 2, 2]) == 1.0


def test_bfloat16_parameters_give_a_float32_decay():
    decay = Decay(0.999, heads=1, channels=1).to(torch.bfloat16)
    fade = decay(torch.arange(2000))
    assert fade.dtype == torch.float32
    assert_close(fade.exp().detach(), by_hand(0.999, decay.raw, torch.arange(2000)).float().detach())


def test_a_fixed_one_is_no_decay_at_offset_zero_and_nothing_for_none():
    offsets = torch.arange(-3, 4)
    assert_close(fixed_decay(0.9, offsets, torch.float64).exp(), 0.9 ** offsets.abs().double())
    assert torch.equal(fixed_decay(None, offsets, torch.float32), torch.zeros(7))


@pytest.mark.parametrize("decay", [None, 1.0])
def test_there_must_be_room_to_learn_in(decay):
    with pytest.raises(MixerConfigError, match=f"learn_decay needs a decay below 1 to start from, got {decay}"):
        Toeplitz(decay=decay, learn_decay=True)


@pytest.mark.parametrize("per", ["channel", "head"])
def test_a_mixer_learns_one_per_head_and_channel(per):
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=6, scale=0.35, causal=True)
    mixer = ToeplitzMixer(spec, Toeplitz(decay=0.9, learn_decay=True, per=per, normalise=False)).double()
    assert mixer.decay.raw.shape == (4, 6 if per == "channel" else 1)
    offsets = torch.arange(30)
    encoded = mixer.encoder(offsets).unflatten(0, (4, -1))
    assert_close(mixer.coefficients(30).detach(), (encoded * by_hand(0.9, mixer.decay.raw, offsets)).detach())


def test_what_is_kept_goes_by_the_learned_decay_too():
    spec = AttentionSpec(heads=2, kv_heads=2, head_dim=3, value_dim=3, scale=0.5)
    mixer = ToeplitzMixer(spec, Toeplitz(learn_decay=True)).double().eval()
    value = torch.randn(1, 2, 9, 3, dtype=torch.float64)
    with torch.no_grad():
        mixer(value=value)
        mixer.decay.raw.sub_(3.0)
        assert_close(mixer(value=value), mixer.reference(value=value))
