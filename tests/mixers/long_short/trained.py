"""Long-Short mixers whose parameters are all at random, and operands that gradients are asked of."""

import dataclasses

import torch

from remixer.mixers import LongShortMixer


def random_mixer(spec, config, **changes):
    torch.manual_seed(0)
    mixer = LongShortMixer(dataclasses.replace(spec, **changes), config).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    return mixer.train()


def operands(T, spec, B=2, dtype=torch.float64):
    torch.manual_seed(T)
    sizes = ((spec.heads, spec.head_dim), (spec.kv_heads, spec.head_dim), (spec.kv_heads, spec.value_dim))
    return [torch.randn(B, T, heads, size, dtype=dtype).transpose(1, 2).requires_grad_() for heads, size in sizes]
