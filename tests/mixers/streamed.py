"""Causal mixers, and operands for them, for tests that go token by token."""

import dataclasses

import torch

from remixer.mixers import AttentionSpec, LongShort, get

SPEC = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.4, source_dim=5, padding=True, causal=True)
CASES = [
    ("long_short", config)
    for config in (
        LongShort(window=8, segment=4, memory=3, maps=True),
        LongShort(window=7, rank=3, segment=3, memory=None, sinks=2),
        LongShort(window=6, rank=2, segment=9, sinks=0, counted=False, dual_norm="paper", project_from="source"),
        LongShort(window=16, rank=2, segment=2, memory=1, dual_norm="per_head"),
        LongShort(window=1, rank=0),
        LongShort(window=5, segment=2, memory="dyadic", per_size=2, rank=2, maps=True),
        LongShort(window=4, segment=1, memory="dyadic", per_size=1, sinks=1, counted=False),
        LongShort(window=9, segment=3, memory="dyadic", per_size=3),
        LongShort(window=8, segment=2, retrieve=2, retrieve_block=4, memory=3),
        LongShort(window=6, segment=3, retrieve=3, retrieve_block=1, memory="dyadic", per_size=2, rank=2, sinks=2),
        LongShort(window=4, segment=4, retrieve=1, retrieve_block=2, rank=0),
    )
]


def mixer_for(name, config, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    mixer = get(name)(dataclasses.replace(SPEC, dtype=dtype, **changes), config)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype).eval()


def operands_for(mixer, T, B):
    spec = mixer.spec
    shapes = {
        "query": (B, spec.heads, T, spec.head_dim),
        "key": (B, spec.kv_heads, T, spec.head_dim),
        "value": (B, spec.kv_heads, T, spec.value_dim),
        "source": (B, T, spec.source_dim),
    }
    return {name: torch.randn(shape).to(spec.dtype) for name, shape in shapes.items() if name in mixer.operands}


def padding_for(kind, B, T):
    if kind == "none":
        return None
    position, row = torch.arange(T)[None], torch.arange(B)[:, None]
    if kind == "holes":
        return torch.rand(B, T) > 0.4
    return position >= T // 3 + row if kind == "left" else position < T - T // 3 - row
