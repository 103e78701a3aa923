import pytest
import torch

from remixer.mixers import AttentionSpec, Softmax, Toeplitz
from remixer.mixers.key_start import OffsetStart
from remixer.mixers.start import Profile
from remixer.mixers.toeplitz import ToeplitzMixer
from remixer.mixers.toeplitz_start import ProfileStart

T = 41


def spec(**changes):
    return AttentionSpec(**{"heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 8, "scale": 0.3, **changes})


def positional(causal, padding=None, seed=0):
    """Operands of an attention that goes by offsets alone, and what it gives."""
    generator = torch.Generator().manual_seed(seed)
    one = spec(causal=causal, bias="offset", padding=padding is not None)
    offsets = torch.arange(1 - T, T).abs().float()
    slopes = torch.tensor([0.05, 0.2, 0.5, 1.0])
    operands = {
        "query": torch.zeros(3, 4, T, 8),
        "key": torch.randn(3, 2, T, 8, generator=generator),
        "value": torch.randn(3, 2, T, 8, generator=generator),
        "bias": -slopes[:, None] * offsets,
    }
    if padding is not None:
        operands["padding"] = padding
    return one, operands, Softmax(one)(**operands)


def masks():
    left, right = (
        torch.arange(T)[None] >= torch.tensor([[0], [9], [20]]),
        torch.arange(T)[None] < torch.tensor([[T], [30], [1]]),
    )
    return {"none": None, "left": left, "right": right}


def error(mixer, operands, target):
    wired = {name: operands[name] for name in mixer.operands if name in operands}
    off, exist = mixer(**wired) - target, operands.get("padding", torch.ones(3, T, dtype=torch.bool))
    off, target = (each.masked_fill(~exist[:, None, :, None], 0.0) for each in (off, target))
    return float(off.square().sum() / target.square().sum())


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_rows_of_an_attention_by_offsets_are_found(causal, padding):
    one, operands, _ = positional(causal, masks()[padding])
    profile = Profile(one, queries=T)
    profile.watch(operands)
    found = profile.shares(200)
    middle = T - 1
    wanted = operands["bias"].flip(1).double().exp()  # bias is by j - i, the profile by i - j
    if causal:
        wanted[:, :middle] = 0.0
    torch.testing.assert_close(found / found[:, middle, None], wanted, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("gate", ["none", "value"])
@torch.no_grad()
def test_a_start_is_nearly_the_attention_where_that_goes_by_offsets(causal, gate, padding):
    one, operands, target = positional(causal, masks()[padding])
    mixer = ToeplitzMixer(one, Toeplitz(gate=gate, decay=None))
    before = error(mixer, operands, target)
    for starter in mixer.starters():
        starter.watch(target, operands)
        starter.settle()
    assert error(mixer, operands, target) < 0.1 * before


@pytest.mark.parametrize("per", ["channel", "head"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_what_an_attention_looks_for_everywhere_is_found(causal, padding, per):
    one, operands, _ = positional(causal, masks()[padding])
    generator = torch.Generator().manual_seed(1)
    # The same in all places; heads that read the same keys look for the same.
    operands["query"] = torch.randn(1, 2, 1, 8, generator=generator).repeat_interleave(2, 1).expand(3, 4, T, 8)
    target = Softmax(one)(**operands)
    mixer = ToeplitzMixer(one, Toeplitz(weigh="key", per=per, decay=None))
    reached = []
    for starter in mixer.starters():
        starter.watch(target, operands)
        starter.settle()
        reached.append(error(mixer, operands, target))
    assert reached[-1] < 0.5 * reached[0]
    assert mixer.key_weights is not None
    found, wanted = mixer.key_weights.weight.mean(-1), 0.3 * operands["query"][0, ::2, 0]
    assert float((found - wanted).norm()) < 0.15 * float(wanted.norm())


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_first_token_that_all_look_for_is_not_taken_for_an_offset(causal):
    torch.manual_seed(0)
    one, operands, _ = positional(causal, masks()["right"])
    query = torch.tensor([1.5] + [0.0] * 7)
    operands["query"] = query.expand(3, 4, T, 8)
    operands["key"][:, :, 0] += 3.0 * query
    target = Softmax(one)(**operands)
    mixer = ToeplitzMixer(one, Toeplitz(weigh="key", decay=None))
    assert mixer.key_weights is not None
    mixer.key_weights.weight[:] = 0.3 * query[:, None]  # what is so; a start finds it
    reached = []
    for starter in (ProfileStart(mixer), *(OffsetStart(mixer) for _ in range(4))):
        starter.watch(target, operands)
        starter.settle()
        reached.append(error(mixer, operands, target))
    assert reached[4] < reached[1] < 0.97 * reached[0], reached  # what is left is what the encoder can't give


@torch.no_grad()
def test_sequences_of_several_lengths_count_together():
    one = spec(causal=True)
    profile = Profile(one)
    for tokens in (1, 7, 30):
        operands = {"query": torch.randn(2, 4, tokens, 8), "key": torch.randn(2, 2, tokens, 8)}
        profile.watch(operands)
    given, pairs = profile.weights()
    assert given.shape == (4, 59)
    assert float(given.sum()) == pytest.approx(4 * 2 * 38)
    assert int(pairs.sum()) == sum(2 * n * (n + 1) // 2 for n in (1, 7, 30))


@torch.no_grad()
def test_a_gate_takes_the_scale_over():
    one, operands, target = positional(causal=True)
    mixer = ToeplitzMixer(one, Toeplitz(gate="query", decay=None))
    for starter in mixer.starters():
        starter.watch(0.5 * target, operands)
        starter.settle()
    assert mixer.gate is not None
    torch.testing.assert_close(2.0 * torch.sigmoid(mixer.gate.bias), torch.full((4, 1, 8), 0.5), rtol=0.2, atol=0.0)
