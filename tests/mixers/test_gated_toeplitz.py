import copy

import pytest
import torch

from remixer.mixers import GatedLinearUnit, GatedToeplitzUnit, MixerConfigError, SimpleRMSNorm, ToeplitzBlock
from remixer.testing import assert_close

WIDTH = 10
# length, batch, heads, padding
SHAPES = [
    (1, 1, 1, "none"),
    (1, 2, 2, "none"),
    (2, 3, 1, "left"),
    (17, 3, 2, "left"),
    (33, 2, 3, "holes"),
    (64, 1, 2, "none"),
]
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def case(T, B, padding, dtype=torch.float64):
    torch.manual_seed(T * 7 + B)
    hidden = torch.randn(B, T, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    position, row = torch.arange(T)[None], torch.arange(B)[:, None]
    if padding == "left":
        return hidden, position >= row.clamp(max=T - 1)
    if padding == "holes":
        return hidden, (torch.rand(B, T) > 0.3) | (position == T // 2)
    return hidden, None


def silu(x):
    return x / (1.0 + (-x).exp())


def norm(x):
    return x / (x.square().sum(-1, keepdim=True).sqrt() / x.shape[-1] ** 0.5 + 1e-8)


def linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def gtu_by_hand(hidden, padding, parameters, *, causal, decay, rpe_layers):
    """The published formulas, one pair of tokens at a time, without any module."""
    u, v = silu(linear(hidden, parameters, "gate")), silu(linear(hidden, parameters, "value"))
    if padding is not None:
        v = v * padding[..., None]

    def t(k):
        out = linear(torch.tensor([float(k)], dtype=v.dtype), parameters, "mixer.encoder.first")
        for layer in range(rpe_layers):
            out = linear(norm(out).relu(), parameters, f"mixer.encoder.hidden.{layer}")
        return linear(norm(out).relu(), parameters, "mixer.encoder.last") * decay ** abs(k)

    T = hidden.shape[1]
    rows = [sum(t(i - j) * v[:, j] for j in range(i + 1 if causal else T)) for i in range(T)]
    return linear(u * torch.stack(rows, 1), parameters, "out")


def gradients(out, module, hidden):
    weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype) / out.shape[1]
    leaves = [hidden, *module.parameters()]
    return torch.autograd.grad((out * weight).sum(), leaves)


@each_direction
@pytest.mark.parametrize(("T", "B", "heads", "padding"), SHAPES)
def test_the_unit_is_the_published_formula(T, B, heads, padding, causal):
    unit = GatedToeplitzUnit(
        WIDTH, expand_ratio=1.5, heads=heads, causal=causal, decay=0.9, rpe_width=8, rpe_layers=2
    ).double()
    hidden, mask = case(T, B, padding)
    parameters = dict(unit.named_parameters())
    expected = gtu_by_hand(hidden, mask, parameters, causal=causal, decay=0.9, rpe_layers=2)
    assert_close(unit(hidden, mask), expected)
    assert_close(gradients(unit(hidden, mask), unit, hidden), gradients(expected, unit, hidden))


@each_direction
@each_dtype
def test_the_unit_is_its_reference_in_values_and_gradients(causal, dtype):
    for T, B, heads, padding in SHAPES:
        unit = GatedToeplitzUnit(WIDTH, heads=heads, causal=causal).to(dtype)
        hidden, mask = case(T, B, padding, dtype)
        out, expected = unit(hidden, mask), unit.reference(hidden, mask)
        assert out.dtype == dtype
        assert_close(out.detach(), expected.detach())
        assert_close(gradients(out, unit, hidden), gradients(expected, unit, hidden))
        unit.eval()
        with torch.no_grad():
            for _ in range(2):  # the second time from what was kept
                assert_close(unit(hidden, mask), expected.detach())


def test_the_linear_unit_is_the_published_formula():
    unit = GatedLinearUnit(WIDTH, 7).double()
    hidden, _ = case(5, 2, "none")
    parameters = dict(unit.named_parameters())
    inner = silu(linear(hidden, parameters, "gate")) * linear(hidden, parameters, "value")
    assert_close(unit(hidden), linear(inner, parameters, "out"))


@each_direction
@pytest.mark.parametrize("prenorm", [True, False])
def test_the_block_is_the_published_formula(prenorm, causal):
    block = ToeplitzBlock(WIDTH, prenorm=prenorm, causal=causal, heads=3, glu_width=12).double()
    hidden, mask = case(17, 3, "left")
    if prenorm:
        middle = hidden + block.gtu.reference(norm(hidden), mask)
        expected = middle + block.glu(norm(middle))
    else:
        middle = hidden + norm(block.gtu.reference(hidden, mask))
        expected = middle + norm(block.glu(middle))
    assert_close(block(hidden, mask), expected)
    assert_close(gradients(block(hidden, mask), block, hidden), gradients(expected, block, hidden))


@each_direction
@pytest.mark.parametrize("real", [slice(4, None), slice(None, 9)], ids=["left", "right"])
def test_a_padded_sample_equals_the_unpadded_one(causal, real):
    blocks = [ToeplitzBlock(WIDTH, causal=causal).double() for _ in range(2)]
    hidden, _ = case(13, 1, "none")
    mask = torch.zeros(1, 13, dtype=torch.bool)
    mask[:, real] = True
    padded, alone = hidden.masked_fill(~mask[..., None], 50.0), hidden[:, real]
    for block in blocks:
        padded, alone = block(padded, mask), block(alone)
    assert_close(padded[:, real].detach(), alone.detach())


def test_causal_blocks_see_nothing_to_come():
    block = ToeplitzBlock(WIDTH, causal=True).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x[None])[0].sum(-1), torch.randn(9, WIDTH).double())
    seen = jacobian.abs().amax(-1)  # (T, T), output by input
    assert float(seen.triu(1).max()) <= 1e-12 * float(seen.max())
    assert float(seen.tril().diagonal().min()) > 0.0


def test_a_block_has_about_as_many_parameters_as_a_transformer_layer():
    count = sum(parameter.numel() for parameter in ToeplitzBlock(512, rpe_width=64, rpe_layers=6).parameters())
    assert 12 * 512**2 <= count <= 12.6 * 512**2


def test_defaults_are_the_published_ones():
    unit = GatedToeplitzUnit(512)
    assert unit.mixer.encoder.first.out_features == 64
    assert GatedToeplitzUnit(16).mixer.encoder.first.out_features == 32
    assert unit.gate.out_features == 3 * 512
    assert GatedToeplitzUnit(10, expand_ratio=1.55, heads=4).gate.out_features == 12
    config = unit.mixer.config
    assert (config.decay, config.rpe_layers, config.normalise, config.gate) == (0.99, 1, False, "none")


def test_it_takes_lengths_it_never_saw():
    block = ToeplitzBlock(WIDTH, causal=True).eval()
    with torch.no_grad():
        long = block(torch.randn(1, 3000, WIDTH))
    assert bool(long.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "no channel is left to 0 heads of 3 times 8 channels"),
        ({"heads": 25}, "no channel is left to 25 heads of 3 times 8 channels"),
        ({"expand_ratio": 0.0}, "no channel is left to 1 heads of 0 times 8 channels"),
        ({"decay": 2.0}, r"decay must lie in \(0, 1\], got 2.0"),
        ({"rpe_width": 0}, "rpe_width must be at least 1, got 0"),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(options, message):
    for module in (GatedToeplitzUnit, ToeplitzBlock):
        with pytest.raises(MixerConfigError, match=message):
            module(8, **options)


def test_the_norm_is_taken_in_float32():
    hidden = torch.randn(2, 300).bfloat16()
    assert SimpleRMSNorm()(hidden).dtype == torch.bfloat16
    assert torch.equal(SimpleRMSNorm()(hidden), norm(hidden.float()).bfloat16())


def test_copies_and_state():
    block = ToeplitzBlock(WIDTH).double().eval()
    hidden, mask = case(17, 3, "left")
    with torch.no_grad():
        expected = block(hidden, mask)
        assert_close(copy.deepcopy(block)(hidden, mask), expected)
        other = ToeplitzBlock(WIDTH).double().eval()
        other(hidden, mask)
        other.load_state_dict(block.state_dict())
        assert_close(other(hidden, mask), expected)


def test_it_exports_with_any_length():
    block = ToeplitzBlock(WIDTH, causal=True).double().eval()
    auto = torch.export.Dim.AUTO
    with torch.no_grad():
        hidden, mask = case(50, 2, "left")
        shapes = {"hidden": {0: auto, 1: auto}, "padding": {0: auto, 1: auto}}
        program = torch.export.export(block, (), {"hidden": hidden, "padding": mask}, dynamic_shapes=shapes)
        hidden, mask = case(61, 3, "left")
        assert_close(program.module()(hidden=hidden, padding=mask), block(hidden, mask))
