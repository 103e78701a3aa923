import pytest
import torch

from remixer.mixers.position_encoder import PositionEncoder, simple_rms_norm
from remixer.testing import assert_close


def by_hand(encoder, offset):
    """The published formula for one offset, in float64."""
    hidden = encoder.first.weight.double()[:, 0] * offset + encoder.first.bias.double()
    for layer in [*encoder.hidden, encoder.last]:
        hidden = hidden / (hidden.norm() * len(hidden) ** -0.5 + 1e-8)
        hidden = layer.weight.double() @ hidden.relu() + layer.bias.double()
    return hidden


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_it_is_the_published_network(layers):
    encoder = PositionEncoder(16, layers, 6)
    offsets = [-500, -1, 0, 1, 2, 14_000]
    expected = torch.stack([by_hand(encoder, offset) for offset in offsets]).detach()
    assert_close(encoder(torch.tensor(offsets)).detach().t(), expected)
    assert len(list(encoder.parameters())) == 2 * (layers + 2)


def test_norm_has_no_scale_and_survives_zero():
    assert_close(simple_rms_norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 4.0]]) * 2**0.5 / 5.0)
    zero = torch.zeros(1, 4, requires_grad=True)
    simple_rms_norm(zero).sum().backward()
    assert bool(zero.grad.isfinite().all())


def test_neighbouring_offsets_stay_apart_in_bfloat16():
    torch.manual_seed(0)
    encoder = PositionEncoder(16, 1, 4).to(torch.bfloat16)
    out = encoder(torch.arange(2047))
    assert out.dtype == torch.float32
    assert out.unique(dim=1).shape[1] > 2000  # positions in bfloat16 would leave 640


def test_autocast_changes_nothing():
    encoder = PositionEncoder(16, 2, 4)
    offsets = torch.arange(300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder(offsets)
    assert torch.equal(inside, encoder(offsets))
