"""Every registered mixer, where it is causal: no output depends on a later token, by its Jacobian."""

import dataclasses

import pytest
import torch

from remixer.mixers import AttentionSpec, FrequencyToeplitz, LongShort, Toeplitz, available, get

VARIANTS = {
    "toeplitz": [Toeplitz(normalise=False, decay=None), Toeplitz(gate="query", per="head")],
    "frequency_toeplitz": [FrequencyToeplitz(gate="value")],
    "long_short": [LongShort(window=8, segment=4, memory=3), LongShort(window=6, segment=9, project_from="source")],
}
CASES = [(name, config) for name in available() for config in [get(name).Config(), *VARIANTS.get(name, [])]]


def largest_leak(mixer, T, rows):
    """The largest derivative of an output by a later operand, over the largest by any, at some rows.

    Transforms round relative to the norm of all values, so that only a ratio to it means anything.
    """
    spec = mixer.spec
    shapes = {
        "query": (1, spec.heads, T, spec.head_dim),
        "key": (1, spec.kv_heads, T, spec.head_dim),
        "value": (1, spec.kv_heads, T, spec.value_dim),
        "source": (1, T, spec.source_dim),
    }
    names = [name for name in shapes if name in mixer.operands]
    leaves = [torch.randn(shapes[name], dtype=spec.dtype, requires_grad=True) for name in names]
    out = mixer(**dict(zip(names, leaves, strict=True)))
    weight = torch.randn_like(out[:, :, 0])
    later, all_of_them = 0.0, 0.0
    for t in rows:
        gradients = torch.autograd.grad((out[:, :, t] * weight).sum(), leaves, retain_graph=True, allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                all_of_them = max(all_of_them, float(gradient.abs().max()))
                later = max([later, *gradient[..., t + 1 :, :].abs().flatten().tolist()])
    return later / all_of_them


def mixer_of(name, config, dtype, causal=True):
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=4, value_dim=4, scale=0.4, source_dim=5, causal=causal)
    mixer = get(name).from_attention(dataclasses.replace(spec, dtype=dtype), config)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype).eval()


@pytest.mark.parametrize(("name", "config"), CASES, ids=lambda x: x if isinstance(x, str) else repr(x)[:60])
def test_no_output_depends_on_later_tokens(name, config):
    assert largest_leak(mixer_of(name, config, torch.float64), 23, range(23)) < 1e-13
    assert largest_leak(mixer_of(name, config, torch.float32), 200, (0, 7, 8, 63, 150, 198)) < 1e-6


def test_a_leak_would_be_found():
    assert largest_leak(mixer_of("toeplitz", Toeplitz(), torch.float64, causal=False), 23, range(23)) > 1e-3
