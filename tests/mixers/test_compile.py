"""Every registered mixer under torch.compile: one graph for all lengths, without a break."""

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from remixer.mixers import AttentionSpec, LongShort, available, get
from remixer.testing import assert_close

CONFIGS = {"long_short": LongShort(window=8, segment=4, memory=3)}
each_mixer = pytest.mark.parametrize("name", available())
each_direction = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def mixer_of(name, causal):
    spec = AttentionSpec(heads=4, kv_heads=2, head_dim=8, value_dim=8, scale=0.3, causal=causal, source_dim=5)
    config = CONFIGS.get(name) or get(name).Config()
    mixer = get(name).from_attention(dataclasses.replace(spec, dtype=torch.float64), config).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def operands_of(mixer, T, B=2):
    shapes = {"query": (B, 4, T, 8), "key": (B, 2, T, 8), "value": (B, 2, T, 8), "source": (B, T, 5)}
    tensors = {name: torch.randn(shapes[name], dtype=torch.float64) for name in shapes if name in mixer.operands}
    return {**tensors, "padding": torch.arange(T) >= torch.arange(B)[:, None]}


@each_direction
@each_mixer
def test_one_graph_serves_all_lengths(name, causal):
    mixer, counter = mixer_of(name, causal), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(mixer, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for T in (17, 33, 130):
            operands = operands_of(mixer, T)
            assert_close(compiled(**operands), mixer.reference(**operands).detach())
        assert counter.frame_count == 1
        operands = operands_of(mixer, 1)  # torch makes a graph of its own for sizes of 1
        assert_close(compiled(**operands), mixer.reference(**operands).detach())


@pytest.mark.slow
@each_direction
@each_mixer
def test_gradients_through_a_compiled_graph(name, causal):
    mixer = mixer_of(name, causal)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, backend="aot_eager", dynamic=True)
    operands = operands_of(mixer, 19)
    value = operands["value"].requires_grad_()
    fast, slow = (
        torch.autograd.grad(function(**operands).square().sum(), value) for function in (compiled, mixer.reference)
    )
    assert_close(fast, slow)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex:UserWarning")
@each_direction
@each_mixer
def test_the_default_compiler(name, causal):
    mixer = mixer_of(name, causal)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, dynamic=True)
    with torch.no_grad():
        for T in (17, 130):
            operands = operands_of(mixer, T)
            assert_close(compiled(**operands), mixer.reference(**operands).detach())
